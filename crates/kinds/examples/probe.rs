// throw-away: reads {apiVersion,kind,raw} lines, prints {code, answer}
use serde_json::{Value, json};
use std::io::{BufRead, Write};
fn fail(code: u16, reason: &str, message: String) -> Value { json!({"code": code, "answer": {"kind":"Status","reason":reason,"message":message}}) }
fn answer(line: &Value) -> Value {
    let api = line["apiVersion"].as_str().unwrap(); let kindname = line["kind"].as_str().unwrap();
    let (group, version) = api.split_once('/').unwrap_or(("", api));
    let kind = kinds::builtin().by_kind(group, version, kindname).unwrap();
    let mut o = line["body"].clone();
    let raw = serde_json::to_vec(&o).unwrap();
    let d = kind.decode(&mut o, Some(&raw));
    let head = format!("{kindname} in version {version:?} cannot be handled as a {kindname}: ");
    if let Some(e) = d.error { return fail(400, "BadRequest", head + &e); }
    let strict: Vec<String> = d.unknown.into_iter().chain(d.duplicate).collect();
    if !strict.is_empty() { return fail(400, "BadRequest", format!("{head}strict decoding error: {}", strict.join(", "))); }
    kind.default(&mut o);
    let nsd = kind.namespaced();
    if nsd { o["metadata"]["namespace"] = "default".into(); }
    if o["metadata"]["name"] .is_null() || o["metadata"]["name"] == "" { if let Some(g) = o["metadata"]["generateName"].as_str() { o["metadata"]["name"] = format!("{g}abcde").into(); } }
    for f in ["selfLink","uid","creationTimestamp","resourceVersion","deletionTimestamp","deletionGracePeriodSeconds"] { o["metadata"].as_object_mut().unwrap().remove(f); }
    let mut forbidden = None;
    if kindname == "Pod" { forbidden = admit_pod(&mut o); }
    if kindname == "Node" {
        let t = o["spec"]["taints"].as_array().cloned().unwrap_or_default();
        if !t.iter().any(|t| t["key"]=="node.kubernetes.io/not-ready") { let mut t=t; t.push(json!({"key":"node.kubernetes.io/not-ready","effect":"NoSchedule"})); o["spec"]["taints"]=t.into(); }
    }
    let name = o["metadata"]["name"].as_str().unwrap_or("").to_owned();
    if let Some(m) = forbidden { return fail(403, "Forbidden", format!("pods {name:?} is forbidden: {m}")); }
    kind.prepare_create(&mut o);
    let faults = kind.validate_create(&o);
    if !faults.is_empty() {
        let gk = if group.is_empty() { kindname.to_owned() } else { format!("{kindname}.{group}") };
        let mut seen = vec![]; for f in &faults { let t = f.to_string(); if !seen.contains(&t) { seen.push(t); } }
        let m = if seen.len() == 1 { seen[0].clone() } else { format!("[{}]", seen.join(", ")) };
        let causes: Vec<Value> = faults.iter().map(|f| { let c = f.cause(); json!({"reason": c.reason, "message": c.message, "field": c.field}) }).collect();
        return json!({"code": 422, "answer": {"kind":"Status","reason":"Invalid","message": format!("{gk} {} is invalid: {m}", kinds::quote(&name)), "details":{"causes":causes}}});
    }
    json!({"code": 201, "answer": o})
}
fn admit_pod(o: &mut Value) -> Option<String> {
    let account = o["spec"]["serviceAccountName"].as_str().unwrap_or("").to_owned();
    let account = if account.is_empty() { "default".to_owned() } else { account };
    o["spec"]["serviceAccountName"] = account.clone().into();
    o["spec"]["serviceAccount"] = account.clone().into();
    let pcn = o["spec"]["priorityClassName"].as_str().unwrap_or("").to_owned();
    if account != "default" { return Some(format!("error looking up service account default/{account}: serviceaccount {account:?} not found")); }
    if o["spec"]["automountServiceAccountToken"] != false {
        let has = |c: &Value| c["volumeMounts"].as_array().into_iter().flatten().any(|m| m["mountPath"]=="/var/run/secrets/kubernetes.io/serviceaccount");
        let mut needed = false;
        for k in ["initContainers","containers"] { for c in o["spec"][k].as_array_mut().into_iter().flatten() { if !has(c) { needed = true; let mut m = c["volumeMounts"].as_array().cloned().unwrap_or_default(); m.push(json!({"name":"kube-api-access-abcde","readOnly":true,"mountPath":"/var/run/secrets/kubernetes.io/serviceaccount"})); c["volumeMounts"]=m.into(); } } }
        if needed { let mut v = o["spec"]["volumes"].as_array().cloned().unwrap_or_default();
        v.push(json!({"name":"kube-api-access-abcde","projected":{"sources":[{"serviceAccountToken":{"expirationSeconds":3607,"path":"token"}},{"configMap":{"name":"kube-root-ca.crt","items":[{"key":"ca.crt","path":"ca.crt"}]}},{"downwardAPI":{"items":[{"path":"namespace","fieldRef":{"apiVersion":"v1","fieldPath":"metadata.namespace"}}]}}],"defaultMode":420}}));
        o["spec"]["volumes"]=v.into(); }
    }
    let mut t = o["spec"]["tolerations"].as_array().cloned().unwrap_or_default();
    for key in ["node.kubernetes.io/not-ready","node.kubernetes.io/unreachable"] {
        let tolerated = t.iter().any(|x| (x["key"]==key || (x["key"].is_null()||x["key"]=="")) && (x["effect"]=="NoExecute"||x["effect"].is_null()||x["effect"]==""));
        if !tolerated { t.push(json!({"key":key,"operator":"Exists","effect":"NoExecute","tolerationSeconds":300})); }
    }
    o["spec"]["tolerations"]=t.into();
    match pcn.as_str() { "" => { if !o["spec"]["priority"].is_null() && o["spec"]["priority"] != 0 { return Some(format!("the integer value of priority ({}) must not be provided in pod spec; priority admission controller computed 0 from the given PriorityClass name", o["spec"]["priority"])); } o["spec"]["priority"]=0.into() }, "system-node-critical" => o["spec"]["priority"]=2000001000.into(), "system-cluster-critical" => o["spec"]["priority"]=2000000000.into(), x => return Some(format!("no PriorityClass with name {x} was found")) }
    if o["spec"]["preemptionPolicy"].is_null() { o["spec"]["preemptionPolicy"]="PreemptLowerPriority".into(); } else if o["spec"]["preemptionPolicy"] != "PreemptLowerPriority" { return Some(format!("the string value of PreemptionPolicy ({}) must not be provided in pod spec; priority admission controller computed PreemptLowerPriority from the given PriorityClass name", o["spec"]["preemptionPolicy"].as_str().unwrap())); }
    None
}
fn main() {
    let stdin = std::io::stdin(); let mut out = std::io::stdout().lock();
    for line in stdin.lock().lines() { let v: Value = serde_json::from_str(&line.unwrap()).unwrap(); writeln!(out, "{}", answer(&v)).unwrap(); }
}
