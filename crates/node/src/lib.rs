//! The node agent: pods → engine
