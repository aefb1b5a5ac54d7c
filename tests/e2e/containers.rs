//! Dockerfile, compose.yaml and the Kubernetes manifests: what they say of ports, paths, times and variables is what the
//! gateway does, and no secret stands in them.

use crate::support::prelude::*;
use serde_yaml::Value as Yaml;
use std::path::Path;

const DOCKERFILE: &str = include_str!("../../Dockerfile");
const IGNORED: &str = include_str!("../../.dockerignore");
const COMPOSE: &str = include_str!("../../conf/compose.yaml");
const KUSTOMIZATION: &str = include_str!("../../conf/kustomization.yaml");
const REFERENCE: &str = include_str!("../../conf/gateway.yaml");
const MANIFESTS: [(&str, &str); 5] = [
    (
        "kubernetes/environment.yaml",
        include_str!("../../conf/kubernetes/environment.yaml"),
    ),
    (
        "kubernetes/deployment.yaml",
        include_str!("../../conf/kubernetes/deployment.yaml"),
    ),
    (
        "kubernetes/service.yaml",
        include_str!("../../conf/kubernetes/service.yaml"),
    ),
    (
        "kubernetes/availability.yaml",
        include_str!("../../conf/kubernetes/availability.yaml"),
    ),
    (
        "kubernetes/network-policy.yaml",
        include_str!("../../conf/kubernetes/network-policy.yaml"),
    ),
];

#[test]
fn the_image_runs_the_gateway_alone_as_nobody_in_particular() {
    let instruction = |name: &str| {
        let whole = DOCKERFILE.replace("\\\n", " ");
        let lines = whole
            .lines()
            .filter_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        lines
            .map(|rest| rest.split_whitespace().collect::<Vec<_>>().join(" "))
            .collect::<Vec<_>>()
    };
    let stages = instruction("FROM");
    assert!(
        stages.len() == 2 && stages[1].ends_with(":nonroot"),
        "{stages:?}"
    );
    assert_eq!(instruction("USER"), ["65532:65532"]);
    assert_eq!(instruction("STOPSIGNAL"), ["SIGTERM"]);
    assert_eq!(instruction("EXPOSE"), [text(&reference("server.port"))]);
    // Without a shell: both are lists.
    let program = instruction("ENTRYPOINT");
    assert_eq!(program, [r#"["/usr/local/bin/api-gateway"]"#]);
    assert_eq!(instruction("HEALTHCHECK").len(), 1);
    assert!(
        instruction("HEALTHCHECK")[0]
            .ends_with(r#"CMD ["/usr/local/bin/api-gateway", "--check-live"]"#)
    );
    let toolchain = stages[0]
        .strip_prefix("rust:")
        .and_then(|tag| tag.split('-').next());
    let needed = include_str!("../../Cargo.toml")
        .lines()
        .find_map(|line| line.strip_prefix("rust-version = "));
    let version = |text: &str| {
        text.trim_matches('"')
            .split('.')
            .map(|n| n.parse::<u32>().unwrap())
            .collect::<Vec<_>>()
    };
    assert!(
        version(toolchain.unwrap()) >= version(needed.unwrap()),
        "{stages:?}"
    );

    // What is compiled in comes along, and what the build does not read does not.
    for kept in [
        "!src",
        "!build.rs",
        "!Cargo.toml",
        "!Cargo.lock",
        "!conf/gateway.yaml",
    ] {
        assert!(IGNORED.lines().any(|line| line == kept), "{kept}");
    }
    assert!(IGNORED.lines().any(|line| line == "*"));
}

#[test]
fn compose_agrees_with_the_gateway_and_holds_no_secret() {
    let compose: Yaml = serde_yaml::from_str(COMPOSE).unwrap();
    let gateway = at(&compose, "services.gateway");
    let port = text(&reference("server.port"));
    assert_eq!(texts(&at(&gateway, "ports")), [format!("{port}:{port}")]);
    assert_eq!(text(&at(&gateway, "environment.PORT")), port);
    let check = texts(&at(&gateway, "healthcheck.test"));
    assert_eq!(check, ["CMD", "/usr/local/bin/api-gateway", "--check-live"]);
    assert!(
        seconds(&at(&gateway, "stop_grace_period")) > drain(),
        "it drains for {} s",
        drain()
    );
    assert_eq!(text(&at(&gateway, "stop_signal")), "SIGTERM");
    assert!(at(&gateway, "ulimits.nofile.soft").as_u64() > Some(2 * 20_000));
    let ready_with = mebibytes(&reference("ops.ready.memory"));
    assert!(
        mebibytes(&at(&gateway, "mem_limit")) > ready_with,
        "not ready before it is killed"
    );
    for (name, service) in at(&compose, "services").as_mapping().unwrap() {
        assert_eq!(texts(&at(service, "cap_drop")), ["ALL"], "{name:?}");
        assert_eq!(at(service, "read_only"), Yaml::Bool(true), "{name:?}");
        assert!(at(service, "healthcheck").is_mapping(), "{name:?}");
        assert!(
            texts(&at(service, "env_file")).contains(&"redis.env".into()),
            "{name:?}"
        );
        let environment = service.get("environment").and_then(Yaml::as_mapping);
        for (variable, _) in environment.into_iter().flatten() {
            assert_known(variable.as_str().unwrap());
        }
    }
    let redis = texts(&at(&compose, "services.redis.command")).join(" ");
    assert!(
        redis.contains("requirepass") && redis.contains("$$REDIS_PASSWORD"),
        "{redis}"
    );
    assert!(redis.contains("noeviction"), "{redis}");
    assert_eq!(at(&compose, "networks.edge.internal"), Yaml::Bool(true));
    assert!(
        compose
            .get("services")
            .unwrap()
            .get("redis")
            .unwrap()
            .get("ports")
            .is_none()
    );
}

#[test]
fn the_manifests_agree_with_the_gateway_and_with_each_other() {
    let objects = objects();
    let deployment = object(&objects, "Deployment");
    let environment = object(&objects, "ConfigMap");
    let pod = at(deployment, "spec.template.spec");
    let container = at(&pod, "containers").as_sequence().unwrap()[0].clone();
    let labels = at(deployment, "spec.template.metadata.labels");

    // Ports: what is named is what the gateway listens on, and what everybody else names is there.
    let port = |name: &str| {
        let ports = at(&container, "ports");
        let found = ports
            .as_sequence()
            .unwrap()
            .iter()
            .find(|port| at(port, "name") == name)
            .cloned();
        found.map(|port| text(&at(&port, "containerPort")))
    };
    assert_eq!(port("http"), Some(text(&at(environment, "data.PORT"))));
    let private = text(&at(environment, "data.OPS_LISTEN"));
    assert_eq!(
        port("private"),
        private.rsplit(':').next().map(str::to_owned)
    );
    let scraped = at(deployment, "spec.template.metadata.annotations");
    assert_eq!(
        scraped["prometheus.io/port"].as_str(),
        port("private").as_deref()
    );
    for (probe, path) in [
        ("startup", "/live"),
        ("readiness", "/ready"),
        ("liveness", "/live"),
    ] {
        let probe = at(&container, &format!("{probe}Probe.httpGet"));
        assert_eq!(
            (text(&at(&probe, "path")), text(&at(&probe, "port"))),
            (path.into(), "private".into())
        );
    }
    assert_eq!(
        text(&at(
            &at(object(&objects, "Service"), "spec.ports")[0],
            "targetPort"
        )),
        "http"
    );

    // Times: SIGKILL comes after the longest drain.
    let grace = at(&pod, "terminationGracePeriodSeconds").as_u64().unwrap();
    let before = at(&container, "lifecycle.preStop.sleep.seconds")
        .as_u64()
        .unwrap();
    assert!(
        grace > before + drain(),
        "{grace} s for {before} s and {} s",
        drain()
    );
    let notices = ["periodSeconds", "failureThreshold"].map(|key| {
        at(&container, &format!("readinessProbe.{key}"))
            .as_u64()
            .unwrap()
    });
    assert!(
        before > notices[0] * notices[1],
        "it is out of the Service by then"
    );
    let limit = mebibytes(&at(&container, "resources.limits.memory"));
    assert!(
        limit > mebibytes(&reference("ops.ready.memory")),
        "not ready before it is killed"
    );

    // The restricted Pod Security Standard.
    let of_pod = at(&pod, "securityContext");
    assert_eq!(at(&of_pod, "runAsNonRoot"), Yaml::Bool(true));
    assert_eq!(text(&at(&of_pod, "seccompProfile.type")), "RuntimeDefault");
    let of_container = at(&container, "securityContext");
    assert_eq!(
        at(&of_container, "allowPrivilegeEscalation"),
        Yaml::Bool(false)
    );
    assert_eq!(
        at(&of_container, "readOnlyRootFilesystem"),
        Yaml::Bool(true)
    );
    assert_eq!(texts(&at(&of_container, "capabilities.drop")), ["ALL"]);
    let user = text(&at(&of_pod, "runAsUser"));
    assert!(
        DOCKERFILE.contains(&format!("USER {user}:")),
        "the image's user"
    );

    // Who selects pods selects these; two stay when one of the least is drained.
    let selectors = [
        at(deployment, "spec.selector.matchLabels"),
        at(object(&objects, "Service"), "spec.selector"),
        at(
            object(&objects, "PodDisruptionBudget"),
            "spec.selector.matchLabels",
        ),
        at(
            object(&objects, "NetworkPolicy"),
            "spec.podSelector.matchLabels",
        ),
    ];
    assert!(
        selectors.iter().all(|selector| *selector == labels),
        "{selectors:?}"
    );
    let least = at(
        object(&objects, "HorizontalPodAutoscaler"),
        "spec.minReplicas",
    )
    .as_u64();
    assert!(at(object(&objects, "PodDisruptionBudget"), "spec.minAvailable").as_u64() < least);

    // Secrets are named, not held.
    for variable in at(&container, "env").as_sequence().unwrap() {
        assert_known(&text(&at(variable, "name")));
        assert!(
            at(variable, "valueFrom.secretKeyRef.name").is_string()
                || variable.get("value").is_some()
        );
    }
    assert!(
        !objects
            .iter()
            .any(|object| text(&at(object, "kind")) == "Secret")
    );
}

/// The ConfigMap that Kustomize makes of conf/gateway.yaml, under the variables that the pods have.
#[test]
fn the_configuration_of_the_pods_is_good() {
    let kustomization: Yaml = serde_yaml::from_str(KUSTOMIZATION).unwrap();
    assert_eq!(
        texts(&at(&kustomization, "resources")),
        MANIFESTS.map(|(path, _)| path)
    );
    let generated = &at(&kustomization, "configMapGenerator")[0];
    assert_eq!(texts(&at(generated, "files")), ["gateway.yaml"]);
    let objects = objects();
    let deployment = object(&objects, "Deployment");
    let pod = at(deployment, "spec.template.spec");
    let volume = &at(&pod, "volumes")[0];
    assert_eq!(at(volume, "configMap.name"), at(generated, "name"));
    let container = &at(&pod, "containers")[0];
    let arguments = texts(&at(container, "args"));
    let mounted = Path::new(arguments.last().unwrap());
    let folder = at(container, "volumeMounts")[0]["mountPath"].clone();
    assert_eq!(mounted.parent().and_then(Path::to_str), folder.as_str());
    assert_eq!(
        mounted.file_name().and_then(|name| name.to_str()),
        Some("gateway.yaml")
    );

    let mut gateway = Gateway::with(REFERENCE)
        .without_env("HOST")
        .without_env("PORT")
        .arg("--test");
    for (name, value) in at(object(&objects, "ConfigMap"), "data")
        .as_mapping()
        .unwrap()
    {
        assert_known(name.as_str().unwrap());
        gateway = gateway.env(name.as_str().unwrap(), value.as_str().expect("a text"));
    }
    let secrets = ["JWT_SECRET", "JWT_REFRESH_SECRET", "REDIS_PASSWORD"];
    let exit = secrets
        .into_iter()
        .fold(gateway, |gateway, name| gateway.env(name, token::SECRET))
        .run_to_exit();
    assert_eq!(exit.code, 0, "{}{}", exit.stdout, exit.stderr);
}

fn objects() -> Vec<Yaml> {
    use serde::Deserialize;
    let documents = MANIFESTS
        .iter()
        .flat_map(|(_, text)| serde_yaml::Deserializer::from_str(text));
    let objects: Vec<_> = documents
        .map(|document| Yaml::deserialize(document).unwrap())
        .collect();
    assert_eq!(objects.len(), 7);
    objects
}

#[track_caller]
fn object<'a>(objects: &'a [Yaml], kind: &str) -> &'a Yaml {
    let found = objects.iter().find(|object| object["kind"] == kind);
    found.unwrap_or_else(|| panic!("there is no {kind}"))
}

#[track_caller]
fn at(yaml: &Yaml, path: &str) -> Yaml {
    let found = path.split('.').try_fold(yaml, |value, key| value.get(key));
    found
        .unwrap_or_else(|| panic!("there is no {path} in {yaml:?}"))
        .clone()
}

fn reference(path: &str) -> Yaml {
    at(&serde_yaml::from_str(REFERENCE).unwrap(), path)
}

/// How long the gateway takes to end at most, in seconds.
fn drain() -> u64 {
    let whole: Yaml = serde_yaml::from_str(REFERENCE).unwrap();
    let optional = |room: &str, key: &str, default: u64| {
        whole
            .get(room)
            .and_then(|room| room.get(key))
            .map_or(default, seconds)
    };
    optional("server", "shutdown_timeout", 30) + optional("server", "drain_delay", 0)
}

#[track_caller]
fn seconds(value: &Yaml) -> u64 {
    let text = value
        .as_str()
        .unwrap_or_else(|| panic!("{value:?} is no time"));
    text.strip_suffix('s')
        .and_then(|n| n.parse().ok())
        .unwrap_or_else(|| panic!("{text} is not in seconds"))
}

/// `1024MiB` as the gateway writes it, `1280Mi` as Kubernetes does, `1280m` as Docker does.
#[track_caller]
fn mebibytes(value: &Yaml) -> u64 {
    let text = text(value);
    let number = ["MiB", "Mi", "m"]
        .iter()
        .find_map(|unit| text.strip_suffix(unit)?.parse().ok());
    number.unwrap_or_else(|| panic!("{text} is not in mebibytes"))
}

#[track_caller]
fn text(value: &Yaml) -> String {
    match value {
        Yaml::String(text) => text.clone(),
        Yaml::Number(number) => number.to_string(),
        other => panic!("{other:?} is no text"),
    }
}

#[track_caller]
fn texts(value: &Yaml) -> Vec<String> {
    let list = value
        .as_sequence()
        .unwrap_or_else(|| panic!("{value:?} is no list"));
    list.iter().map(text).collect()
}

/// The reference says of every variable where it belongs.
#[track_caller]
fn assert_known(variable: &str) {
    let words = || REFERENCE.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    assert!(
        words().any(|word| word == variable),
        "{variable} is no variable of the gateway"
    );
}
