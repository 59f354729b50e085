//! The cluster's name server
