//! What workers ask of typed objects of the API: whether a pod is ready or over, whether it may stay on
//! a tainted node.
//!
//! The decision: a rule of Kubernetes about an object alone is written once, as a function of that
//! object, and every worker that follows the rule asks here. So the scheduler, the controllers and the
//! nodes cannot come to different answers.
//!
//! What to do about the answer, and everything that takes more than the object (a clock, a cache, the
//! server), is left to the workers; how objects look on the wire is the concern of `kinds`.

pub mod pod;
mod sysctl;
mod taint;

pub use sysctl::SAFE_SYSCTLS;
pub use taint::tolerates;
