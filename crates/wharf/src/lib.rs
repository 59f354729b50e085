//! One program: the whole container platform
