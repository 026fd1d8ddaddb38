//! Whose telemetry it is: the attributes of the resource, from variables and from facts that were read elsewhere.
//!
//! It reads nothing: [`HostFacts`] are what `/proc`, `/sys` and `/etc` say, as text, and the environment is a function.

use warptrace_model::metric::resource as name;
use warptrace_model::{Object, Value};

use crate::otlp::{Ignored, Variables, resource_from_env};

/// What the machine says. Texts may have line feeds at their ends, and are empty where there is none.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// `/proc/sys/kernel/hostname`.
    pub hostname: String,
    /// `/etc/machine-id`.
    pub machine_id: String,
    /// `/proc/sys/kernel/osrelease`.
    pub kernel_release: String,
    /// As `uname -m`: `x86_64`, `aarch64`.
    pub machine: String,
    /// `/proc/self/cgroup`.
    pub cgroup: String,
    /// `/proc/self/mountinfo`: in a container with a cgroup namespace of its own it has the id that the cgroup's path lacks.
    pub mountinfo: String,
    /// `/sys/class/dmi/id/sys_vendor`, which says the cloud without asking its network.
    pub system_vendor: String,
    /// `/sys/class/dmi/id/product_name`.
    pub product_name: String,
    /// `/var/run/secrets/kubernetes.io/serviceaccount/namespace`.
    pub service_account_namespace: String,
    pub pid: u32,
    /// Name of the program's file.
    pub executable: String,
    /// Name of the user; empty when not known.
    pub owner: String,
}

/// What the configuration says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ResourceOptions {
    /// Of warptrace.
    pub version: String,
    /// Tells runs apart: any text that no other run has.
    pub instance_id: String,
    pub node_id: Option<String>,
    pub cluster_id: Option<String>,
    pub provider: Option<String>,
    /// Size of the job's world, and the node's rank in it.
    pub world: Option<(u32, u32)>,
}

/// The resource of the agent's telemetry, and which variables were ignored.
///
/// From the weakest: what the machine says, what Kubernetes' downward API put in variables, the configuration, then
/// `OTEL_RESOURCE_ATTRIBUTES` and `OTEL_SERVICE_NAME`, which add and replace anything.
pub fn resource_attributes(
    facts: &HostFacts,
    options: &ResourceOptions,
    lookup: impl Fn(&str) -> Option<String>,
) -> (Object, Vec<Ignored>) {
    let mut to = Object::new();
    let mut put = |key: &str, value: &str| {
        let value = value.trim();
        if !value.is_empty() {
            to.insert(key, value);
        }
    };
    let variables = Variables::new(&lookup);
    let first = |names: &[&str]| {
        let said = names.iter().find_map(|name| variables.get(name));
        said.map(|said| said.text().to_owned())
    };
    let in_pod = first(&["KUBERNETES_SERVICE_HOST"]).is_some();
    let hostname = facts.hostname.trim();

    put(name::SERVICE_NAME, "warptrace");
    put(name::SERVICE_VERSION, &options.version);
    put(name::SERVICE_INSTANCE_ID, &options.instance_id);
    let k8s_node = first(&["K8S_NODE_NAME", "NODE_NAME"]);
    let node = options.node_id.clone().or_else(|| k8s_node.clone());
    put(name::NODE_ID, node.as_deref().unwrap_or(hostname));
    put(
        name::CLUSTER_ID,
        options.cluster_id.as_deref().unwrap_or_default(),
    );
    let firmware = cloud_provider(&facts.system_vendor, &facts.product_name);
    let provider = options.provider.as_deref().or(firmware);
    put(name::CLOUD_PROVIDER, provider.unwrap_or_default());

    // In a pod that does not share the host's name, the host's name is the node's.
    let host = k8s_node.as_deref().filter(|_| in_pod).unwrap_or(hostname);
    put(name::HOST_NAME, host);
    put(name::HOST_ID, &facts.machine_id);
    put(
        name::HOST_ARCH,
        match facts.machine.trim() {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        },
    );
    put(name::OS_TYPE, "linux");
    put(name::OS_VERSION, &facts.kernel_release);

    let cluster_name = first(&["K8S_CLUSTER_NAME"]);
    put(
        name::CLUSTER_NAME,
        cluster_name.as_deref().unwrap_or_default(),
    );
    put(name::K8S_NODE_NAME, k8s_node.as_deref().unwrap_or_default());
    let namespace = first(&["K8S_NAMESPACE_NAME", "K8S_NAMESPACE", "POD_NAMESPACE"]);
    let namespace = namespace.unwrap_or_else(|| facts.service_account_namespace.clone());
    put(name::K8S_NAMESPACE, &namespace);
    let pod = first(&["K8S_POD_NAME", "POD_NAME"]);
    let pod = pod.or_else(|| in_pod.then(|| hostname.to_owned()));
    put(name::K8S_POD_NAME, pod.as_deref().unwrap_or_default());
    let uid = first(&["K8S_POD_UID", "POD_UID"]).or_else(|| pod_uid(&facts.cgroup));
    put(name::K8S_POD_UID, uid.as_deref().unwrap_or_default());
    let container = first(&["K8S_CONTAINER_NAME", "CONTAINER_NAME"]);
    put(
        name::K8S_CONTAINER_NAME,
        container.as_deref().unwrap_or_default(),
    );
    let id = container_id(&facts.cgroup).or_else(|| container_id_of_mounts(&facts.mountinfo));
    put(name::CONTAINER_ID, id.unwrap_or_default());
    put(name::PROCESS_EXECUTABLE, &facts.executable);
    put(name::PROCESS_OWNER, &facts.owner);

    if facts.pid != 0 {
        to.insert(name::PROCESS_PID, i64::from(facts.pid));
    }
    if let Some((size, rank)) = options.world {
        to.insert(name::WORLD_SIZE, i64::from(size));
        to.insert(name::NODE_RANK, i64::from(rank));
    }
    let (said, ignored) = resource_from_env(&lookup);
    for (key, value) in said.iter() {
        to.insert(key, Value::clone(value));
    }
    (to, ignored)
}

/// By the vendor and product that the firmware names ([`HostFacts`]): `aws`, `gcp` or `azure`.
pub fn cloud_provider(system_vendor: &str, product_name: &str) -> Option<&'static str> {
    let (vendor, product) = (system_vendor.trim(), product_name.trim());
    if vendor.starts_with("Amazon") {
        Some("aws")
    } else if vendor == "Google" || product == "Google Compute Engine" {
        Some("gcp")
    } else if vendor == "Microsoft Corporation" && product == "Virtual Machine" {
        // Hyper-V elsewhere says the same; Azure is by far the commonest place of such machines with GPUs.
        Some("azure")
    } else {
        None
    }
}

/// 64 hexadecimal digits that stand alone in the last part of a path, as every container runtime has them.
fn container_id(cgroup: &str) -> Option<&str> {
    cgroup.lines().find_map(|line| {
        let path = line.splitn(3, ':').nth(2)?;
        let mut parts = path.rsplit(['/', '-', '.', ':']);
        parts.find(|part| is_container_id(part))
    })
}

/// Of the files that a runtime mounts from its folder of the container: `/etc/hostname` and the like.
fn container_id_of_mounts(mountinfo: &str) -> Option<&str> {
    let lines = mountinfo.lines().filter(|line| {
        let mut fields = line.split(' ');
        matches!(
            fields.nth(4),
            Some("/etc/hostname" | "/etc/hosts" | "/etc/resolv.conf")
        )
    });
    let mut roots = lines.filter_map(|line| line.split(' ').nth(3));
    roots.find_map(|root| root.split('/').find(|part| is_container_id(part)))
}

fn is_container_id(part: &str) -> bool {
    part.len() == 64
        && part
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

/// The part `pod<uid>` of a path; systemd's driver writes `_` for `-`.
fn pod_uid(cgroup: &str) -> Option<String> {
    let parts = cgroup.lines().flat_map(|line| line.split(['/', ':']));
    let mut uids = parts.filter_map(|part| {
        let part = part.strip_suffix(".slice").unwrap_or(part);
        let from = part.rfind("pod")? + 3;
        let uid = part.get(from..)?.replace('_', "-");
        let is_uid = uid.len() == 36
            && uid.bytes().enumerate().all(|(at, byte)| match at {
                8 | 13 | 18 | 23 => byte == b'-',
                _ => byte.is_ascii_hexdigit(),
            });
        is_uid.then_some(uid)
    });
    uids.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4f1c2d3e4f5a6b7c8d9e0f1a2b3c4d5e6f7a8b9c0d1e2f3a4b5c6d7e8f9a0b1c";
    const UID: &str = "0a1b2c3d-1111-2222-3333-444455556666";

    fn attributes(
        facts: &HostFacts,
        options: &ResourceOptions,
        env: &[(&str, &str)],
    ) -> Vec<(String, Value)> {
        let (resource, ignored) = resource_attributes(facts, options, |name| {
            let found = env.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        assert!(ignored.is_empty(), "{ignored:?}");
        resource
            .iter()
            .map(|(k, v)| (k.to_owned(), v.clone()))
            .collect()
    }

    #[track_caller]
    fn has(attributes: &[(String, Value)], key: &str, expected: Option<&str>) {
        let found = attributes.iter().find(|(k, _)| k == key);
        assert_eq!(found.and_then(|(_, v)| v.as_str()), expected, "{key}");
    }

    fn host() -> HostFacts {
        HostFacts {
            hostname: "gpu-7\n".to_owned(),
            machine_id: "0123456789abcdef0123456789abcdef\n".to_owned(),
            kernel_release: "6.8.0-45-generic\n".to_owned(),
            machine: "x86_64".to_owned(),
            cgroup: "0::/system.slice/warptrace.service\n".to_owned(),
            system_vendor: "Amazon EC2\n".to_owned(),
            product_name: "p5.48xlarge\n".to_owned(),
            pid: 77,
            executable: "warptrace".to_owned(),
            ..HostFacts::default()
        }
    }

    #[test]
    fn on_a_plain_host_the_machine_says_who_it_is() {
        let options = ResourceOptions {
            version: "1.2.3".to_owned(),
            cluster_id: Some("train".to_owned()),
            world: Some((64, 3)),
            ..ResourceOptions::default()
        };
        let said = attributes(&host(), &options, &[]);
        for (key, expected) in [
            ("service.name", Some("warptrace")),
            ("service.version", Some("1.2.3")),
            ("warptrace.node.id", Some("gpu-7")),
            ("warptrace.cluster.id", Some("train")),
            ("cloud.provider", Some("aws")),
            ("host.name", Some("gpu-7")),
            ("host.id", Some("0123456789abcdef0123456789abcdef")),
            ("host.arch", Some("amd64")),
            ("os.version", Some("6.8.0-45-generic")),
            ("k8s.pod.name", None),
            ("container.id", None),
            ("service.instance.id", None),
        ] {
            has(&said, key, expected);
        }
        assert!(said.contains(&("process.pid".to_owned(), 77.into())));
        assert!(said.contains(&("warptrace.world_size".to_owned(), 64.into())));
        assert!(said.contains(&("warptrace.node.rank".to_owned(), 3.into())));
    }

    #[test]
    fn in_a_pod_variables_cgroup_and_mounts_say_it() {
        let slice = UID.replace('-', "_");
        let by_cgroup = HostFacts {
            hostname: "warptrace-x1".to_owned(),
            cgroup: format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{slice}.slice/cri-containerd-{ID}.scope\n"
            ),
            service_account_namespace: "gpu".to_owned(),
            ..HostFacts::default()
        };
        let env = [
            ("KUBERNETES_SERVICE_HOST", "10.0.0.1"),
            ("NODE_NAME", "node-3"),
            ("CONTAINER_NAME", "agent"),
        ];
        let said = attributes(&by_cgroup, &ResourceOptions::default(), &env);
        for (key, expected) in [
            ("host.name", Some("node-3")),
            ("warptrace.node.id", Some("node-3")),
            ("k8s.node.name", Some("node-3")),
            ("k8s.namespace.name", Some("gpu")),
            ("k8s.pod.name", Some("warptrace-x1")),
            ("k8s.pod.uid", Some(UID)),
            ("k8s.container.name", Some("agent")),
            ("container.id", Some(ID)),
            ("cloud.provider", None),
        ] {
            has(&said, key, expected);
        }
        let by_mounts = HostFacts {
            cgroup: "0::/\n".to_owned(),
            mountinfo: format!(
                "700 600 8:1 /x /data rw - ext4 /dev/sda rw\n\
                 701 600 8:1 /var/lib/docker/containers/{ID}/hostname /etc/hostname rw,relatime - ext4 /dev/sda rw\n"
            ),
            ..HostFacts::default()
        };
        let said = attributes(&by_mounts, &ResourceOptions::default(), &[]);
        has(&said, "container.id", Some(ID));
        for v1 in [
            format!("12:devices:/kubepods/besteffort/pod{UID}/{ID}\n11:cpu:/\n"),
            format!("1:name=systemd:/docker/{ID}\n"),
            format!("0::/system.slice/docker-{ID}.scope\n"),
        ] {
            assert_eq!(container_id(&v1), Some(ID), "{v1}");
        }
        assert_eq!(pod_uid("0::/user.slice/podman-123.scope"), None);
    }

    #[test]
    fn the_configuration_comes_before_the_machine_and_the_variables_before_both() {
        let options = ResourceOptions {
            node_id: Some("n1".to_owned()),
            provider: Some("azure".to_owned()),
            ..ResourceOptions::default()
        };
        let env = [
            ("OTEL_SERVICE_NAME", "serving"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "host.name=other,deployment.environment.name=prod",
            ),
        ];
        let said = attributes(&host(), &options, &env);
        for (key, expected) in [
            ("service.name", "serving"),
            ("warptrace.node.id", "n1"),
            ("cloud.provider", "azure"),
            ("host.name", "other"),
            ("deployment.environment.name", "prod"),
        ] {
            has(&said, key, Some(expected));
        }
        assert_eq!(said[0].0, "service.name", "the order of the table");
        let wrong = |name: &str| (name == "OTEL_RESOURCE_ATTRIBUTES").then(|| "x".to_owned());
        let (_, ignored) = resource_attributes(&host(), &options, wrong);
        assert_eq!(ignored.len(), 1);
    }
}
