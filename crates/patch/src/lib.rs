//! JSON, merge, strategic and server-side-apply patches: Value × Value → Value
