//! Field selectors that can be answered from an object itself.
//!
//! The server knows more of them; one that is not known here is left to it.

use std::any::Any;

use k8s_openapi::api::core::v1::Pod;
use kube::Resource;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Field {
    Name,
    Namespace,
    NodeName,
}

/// Fields and the values that they must have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Fields(Vec<(Field, String)>);

impl Fields {
    /// Reads a selector such as `metadata.name=web`; `None` if there is something in it that cannot be
    /// answered from the object.
    pub(crate) fn parse(selector: &str) -> Option<Fields> {
        let parts = selector.split(',').map(|part| {
            let (name, value) = part.split_once("==").or_else(|| part.split_once('='))?;
            let field = match name {
                "metadata.name" => Field::Name,
                "metadata.namespace" => Field::Namespace,
                "spec.nodeName" => Field::NodeName,
                _ => return None,
            };
            Some((field, value.to_owned()))
        });
        parts.collect::<Option<Vec<_>>>().map(Fields)
    }

    /// The selector that picks the pods of a node.
    pub(crate) fn of_node(name: &str) -> Fields {
        Fields(vec![(Field::NodeName, name.to_owned())])
    }

    /// Whether an object has these values. One that has no such field has not.
    pub(crate) fn pick<K: Resource + 'static>(&self, object: &K) -> bool {
        self.0.iter().all(|(field, value)| {
            let meta = object.meta();
            let found = match field {
                Field::Name => meta.name.as_deref(),
                Field::Namespace => meta.namespace.as_deref(),
                Field::NodeName => (object as &dyn Any)
                    .downcast_ref::<Pod>()
                    .and_then(|pod| pod.spec.as_ref()?.node_name.as_deref()),
            };
            found == Some(value.as_str())
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_known_is_answered_as_the_server_does() {
        let pod = json!({"metadata": {"name": "web", "namespace": "default"}, "spec": {"nodeName": "a", "containers": []}});
        let pod: Pod = serde_json::from_value(pod).expect("is a pod");
        let check = |selector: &str, expected: Option<bool>| {
            let fields = Fields::parse(selector);
            assert_eq!(
                fields.map(|fields| fields.pick(&pod)),
                expected,
                "{selector}"
            );
        };
        check("spec.nodeName=a", Some(true));
        check("spec.nodeName==b", Some(false));
        check("metadata.name=web,metadata.namespace=default", Some(true));
        check("metadata.name=web,metadata.namespace=other", Some(false));
        check("status.phase=Running", None);
        check("metadata.name!=web", None);
        check("", None);
    }
}
