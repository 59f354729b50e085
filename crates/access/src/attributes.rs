//! What is asked: who wants to do what with which thing.

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct User<'a> {
    /// User name; `system:serviceaccount:<namespace>:<name>` for a ServiceAccount.
    pub name: &'a str,
    /// All groups.
    pub groups: &'a [String],
}

/// One request, as an authorizer sees it.
#[derive(Clone, Copy, Debug)]
pub struct Attributes<'a> {
    /// Who asks.
    pub user: User<'a>,
    /// `get`, `list`, `create`, …; for a path without a resource the HTTP method in lower case.
    pub verb: &'a str,
    /// What it is about.
    pub subject: Subject<'a>,
}

/// What a request is about.
#[derive(Clone, Copy, Debug)]
pub enum Subject<'a> {
    /// A resource of the API.
    Resource {
        /// API group, empty for the core group.
        group: &'a str,
        /// Plural name.
        resource: &'a str,
        /// Empty for the resource itself.
        subresource: &'a str,
        /// Empty for cluster-scoped resources and for all namespaces.
        namespace: &'a str,
        /// Empty for collections and for creation.
        name: &'a str,
    },
    /// A path outside the resources, such as `/healthz`.
    Path(&'a str),
}
