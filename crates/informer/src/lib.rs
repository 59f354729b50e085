//! One list and watch per kind, shared by all workers of a process
