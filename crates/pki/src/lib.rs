//! The cluster's certificate authority: make, load, issue
