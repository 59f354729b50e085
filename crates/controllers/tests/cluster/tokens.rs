//! Tokens of ServiceAccounts that are kept in Secrets.

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::core::v1::{Secret, ServiceAccount};
use kube::api::{Api, DeleteParams, PostParams};
use serde_json::{Value, json};

use crate::House;

fn secret(name: &str, account: &str) -> Value {
    json!({"metadata": {"name": name, "annotations": {"kubernetes.io/service-account.name": account}},
        "type": "kubernetes.io/service-account-token", "data": {"mine": "eA=="}})
}

/// Whose token it is; empty if it is good for nobody.
async fn owner_of(house: &House, token: &str) -> String {
    let reviews: Api<TokenReview> = Api::all(house.client.clone());
    let review = TokenReview {
        spec: TokenReviewSpec {
            token: token.to_owned(),
            audiences: None,
        },
        ..TokenReview::default()
    };
    let reviewed = reviews.create(&PostParams::default(), &review).await;
    let status = reviewed.expect("is reviewed").status.unwrap_or_default();
    let user = status.user.and_then(|user| user.username);
    user.unwrap_or_default()
}

#[tokio::test]
async fn a_secret_for_a_token_gets_one_that_is_good_as_long_as_both_are_there() {
    let house = House::new().await;
    let account = json!({"metadata": {"name": "builder"}});
    let account: ServiceAccount = house.create(account).await;
    for name in ["token", "other"] {
        house.create::<Secret>(secret(name, "builder")).await;
    }
    let filled = |secret: &Secret| {
        let data = secret.data.as_ref();
        data.is_some_and(|data| data.contains_key("token"))
    };
    let found = house.wait::<Secret>("token", "is filled", filled).await;
    house.wait::<Secret>("other", "is filled too", filled).await;
    let text = |name: &str| {
        let data = found.data.as_ref().expect("has data");
        String::from_utf8(data[name].0.clone()).expect("is text")
    };
    assert_eq!(
        [text("ca.crt"), text("namespace"), text("mine")],
        ["certificate", "default", "x"]
    );
    assert_eq!(
        json!(found.metadata.annotations),
        json!({"kubernetes.io/service-account.name": "builder",
            "kubernetes.io/service-account.uid": account.metadata.uid})
    );
    let builder = "system:serviceaccount:default:builder";
    assert_eq!(owner_of(&house, &text("token")).await, builder);

    let secrets: Api<Secret> = house.api();
    secrets
        .delete("token", &DeleteParams::default())
        .await
        .expect("is deleted");
    assert_eq!(owner_of(&house, &text("token")).await, "");
    let accounts: Api<ServiceAccount> = house.api();
    accounts
        .delete("builder", &DeleteParams::default())
        .await
        .expect("is deleted");
    house.wait_gone::<Secret>("other").await;
}

#[tokio::test]
async fn a_secret_for_nobody_goes_and_one_that_was_emptied_is_filled_again() {
    let house = House::new().await;
    house.create::<Secret>(secret("nobody-s", "absent")).await;
    house.wait_gone::<Secret>("nobody-s").await;
    let mut stranger = secret("stranger-s", "default");
    stranger["metadata"]["annotations"]["kubernetes.io/service-account.uid"] = json!("another");
    house.create::<Secret>(stranger).await;
    house.wait_gone::<Secret>("stranger-s").await;
    house.create::<Secret>(secret("token", "default")).await;
    let filled = |secret: &Secret| {
        let data = secret.data.as_ref();
        data.is_some_and(|data| data.contains_key("token") && data.contains_key("ca.crt"))
    };
    house.wait::<Secret>("token", "is filled", filled).await;
    house
        .patch::<Secret>("token", json!({"data": {"token": null, "ca.crt": "eA=="}}))
        .await;
    house
        .wait::<Secret>("token", "is filled again", |secret| {
            let certificates = secret.data.as_ref().and_then(|data| data.get("ca.crt"));
            filled(secret) && certificates.is_some_and(|found| found.0 == b"certificate")
        })
        .await;
}
