//! Volumes on this machine: directories, memory, projected files
