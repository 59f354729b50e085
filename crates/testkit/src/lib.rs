//! An in-memory cluster with a fake engine, for tests
