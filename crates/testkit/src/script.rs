//! What the containers of an image do, as a test has it written down.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

/// What a container does. The default runs until it is told to stop, and then ends at once.
#[derive(Clone, Debug, Default)]
pub struct Behaviour {
    /// From the order to start to the running process.
    pub start_takes: Duration,
    /// Ends by itself after this time, with this code.
    pub exits: Option<(Duration, i32)>,
    /// From the stop signal to the end; one that is longer than the grace is cut short by a kill.
    pub stop_takes: Duration,
    /// The exit code of any command that is run in it: what probes see.
    pub exec_code: i32,
    /// What such a command prints.
    pub exec_output: String,
}

impl Behaviour {
    /// Ends by itself.
    pub fn exits(after: Duration, code: i32) -> Behaviour {
        Behaviour {
            exits: Some((after, code)),
            ..Behaviour::default()
        }
    }
}

/// The images that are on the nodes, and how their containers behave. Clones are the same script,
/// and it can be changed while the cluster runs: commands and later starts follow the new version.
#[derive(Clone, Debug, Default)]
pub struct Script(Arc<Mutex<BTreeMap<String, Behaviour>>>);

impl Script {
    /// Puts an image, named as pods name it, on all nodes, or changes how it behaves.
    pub fn set(&self, image: &str, behaviour: Behaviour) {
        self.0.lock().insert(image.to_owned(), behaviour);
    }

    /// Changes how an image behaves; nothing if there is none of this name.
    pub fn change(&self, image: &str, change: impl FnOnce(&mut Behaviour)) {
        if let Some(behaviour) = self.0.lock().get_mut(image) {
            change(behaviour);
        }
    }

    /// Takes an image from all nodes.
    pub fn remove(&self, image: &str) {
        self.0.lock().remove(image);
    }

    pub(crate) fn find(&self, image: &str) -> Option<Behaviour> {
        self.0.lock().get(image).cloned()
    }

    pub(crate) fn images(&self) -> Vec<String> {
        self.0.lock().keys().cloned().collect()
    }
}
