//! Images on this machine: archives in, verified layers, root file systems out
