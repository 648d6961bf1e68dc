//! Which pod to enrol: one request, or a `pods.yaml` of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt, fs, io,
    path::{Path, PathBuf},
    str::FromStr as _,
};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{
    agent_down::AgentDown,
    identity::{Identity, IdentityError, TrustDomain},
    redirect::RedirectMode,
    splice::SpliceMode,
    workload::{MtlsMode, WorkloadUid},
};

/// The longest uid or name, in bytes.
const MAX_NAME_BYTES: usize = 253;

/// The most labels a pod may have.
const MAX_LABELS: usize = 256;

/// Where a pod's network namespace is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NetnsRef {
    /// A mounted namespace: `/run/netns/x`.
    Path(PathBuf),
    /// The namespace of a process.
    Pid(u32),
}

impl fmt::Display for NetnsRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Path(path) => path.display().fmt(f),
            Self::Pid(pid) => write!(f, "pid {pid}"),
        }
    }
}

/// One pod to enrol: the body of `POST /pods`, and an entry of `pods.yaml`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Fields", into = "Fields")]
pub struct EnrollRequest {
    /// Letters, digits, `.`, `-` and `_`: it also names files of the agent.
    pub uid: WorkloadUid,
    pub name: String,
    pub namespace: String,
    pub service_account: String,
    pub netns: NetnsRef,
    pub labels: BTreeMap<String, String>,
    pub mtls: MtlsMode,
    /// In place of the agent's.
    pub splice: Option<SpliceMode>,
    /// In place of the agent's.
    pub agent_down: Option<AgentDown>,
    /// In place of the agent's.
    pub redirect_peer: Option<RedirectMode>,
    pub exclude_outbound_ports: Vec<u16>,
    pub exclude_outbound_cidrs: Vec<IpNet>,
    pub exclude_inbound_ports: Vec<u16>,
}

impl EnrollRequest {
    /// The pod's identity in `trust_domain`.
    ///
    /// # Errors
    /// As [`Identity::new`]; not for a request that came in as JSON or YAML, whose
    /// parts were checked.
    pub fn identity(&self, trust_domain: TrustDomain) -> Result<Identity, IdentityError> {
        Identity::new(trust_domain, &self.namespace, &self.service_account)
    }
}

/// Why an enrolment can't be honoured as it stands.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEnrollment {
    #[error("uid `{0}` must be 1 to {MAX_NAME_BYTES} letters, digits, `.`, `-` or `_`")]
    Uid(String),
    #[error("name must be 1 to {MAX_NAME_BYTES} bytes without control characters")]
    Name,
    #[error(
        "namespace `{namespace}` and service account `{service_account}` must be letters, \
         digits, `.`, `-` or `_`: they are part of the identity"
    )]
    Identity { namespace: String, service_account: String },
    #[error("give either netns (an absolute path) or pid, and not both")]
    Netns,
    #[error("netns `{0}` must be an absolute path")]
    RelativeNetns(PathBuf),
    #[error("pid must not be 0")]
    PidZero,
    #[error("more than {MAX_LABELS} labels")]
    Labels,
    #[error("{0} must not hold port 0")]
    PortZero(&'static str),
}

/// The wire's shape.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    uid: String,
    name: String,
    namespace: String,
    service_account: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    netns: Option<PathBuf>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    #[serde(default)]
    mtls: MtlsMode,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    splice: Option<SpliceMode>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    agent_down: Option<AgentDown>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    redirect_peer: Option<RedirectMode>,
    #[serde(default)]
    exclude_outbound_ports: Vec<u16>,
    #[serde(default)]
    exclude_outbound_cidrs: Vec<IpNet>,
    #[serde(default)]
    exclude_inbound_ports: Vec<u16>,
}

impl TryFrom<Fields> for EnrollRequest {
    type Error = InvalidEnrollment;

    fn try_from(fields: Fields) -> Result<Self, Self::Error> {
        let name_byte = |b: u8| b.is_ascii_alphanumeric() || b".-_".contains(&b);
        let uid = fields.uid;
        if uid.is_empty()
            || uid.len() > MAX_NAME_BYTES
            || uid.starts_with('.')
            || !uid.bytes().all(name_byte)
        {
            return Err(InvalidEnrollment::Uid(uid.chars().take(64).collect()));
        }
        if fields.name.is_empty()
            || fields.name.len() > MAX_NAME_BYTES
            || fields.name.chars().any(char::is_control)
        {
            return Err(InvalidEnrollment::Name);
        }
        // Any trust domain shows whether the other two parts are right.
        let any = TrustDomain::from_str("a");
        let identity =
            any.and_then(|any| Identity::new(any, &fields.namespace, &fields.service_account));
        if identity.is_err() {
            return Err(InvalidEnrollment::Identity {
                namespace: fields.namespace.chars().take(64).collect(),
                service_account: fields.service_account.chars().take(64).collect(),
            });
        }
        let netns = match (fields.netns, fields.pid) {
            (Some(path), None) if path.is_absolute() => NetnsRef::Path(path),
            (Some(path), None) => return Err(InvalidEnrollment::RelativeNetns(path)),
            (None, Some(0)) => return Err(InvalidEnrollment::PidZero),
            (None, Some(pid)) => NetnsRef::Pid(pid),
            (None, None) | (Some(_), Some(_)) => return Err(InvalidEnrollment::Netns),
        };
        if fields.labels.len() > MAX_LABELS {
            return Err(InvalidEnrollment::Labels);
        }
        for (name, ports) in [
            ("exclude_outbound_ports", &fields.exclude_outbound_ports),
            ("exclude_inbound_ports", &fields.exclude_inbound_ports),
        ] {
            if ports.contains(&0) {
                return Err(InvalidEnrollment::PortZero(name));
            }
        }
        Ok(Self {
            uid: WorkloadUid(uid.into()),
            name: fields.name,
            namespace: fields.namespace,
            service_account: fields.service_account,
            netns,
            labels: fields.labels,
            mtls: fields.mtls,
            redirect_peer: fields.redirect_peer,
            splice: fields.splice,
            agent_down: fields.agent_down,
            exclude_outbound_ports: fields.exclude_outbound_ports,
            exclude_outbound_cidrs: fields.exclude_outbound_cidrs,
            exclude_inbound_ports: fields.exclude_inbound_ports,
        })
    }
}

impl From<EnrollRequest> for Fields {
    fn from(request: EnrollRequest) -> Self {
        let (netns, pid) = match request.netns {
            NetnsRef::Path(path) => (Some(path), None),
            NetnsRef::Pid(pid) => (None, Some(pid)),
        };
        Self {
            uid: request.uid.to_string(),
            name: request.name,
            namespace: request.namespace,
            service_account: request.service_account,
            netns,
            pid,
            labels: request.labels,
            mtls: request.mtls,
            redirect_peer: request.redirect_peer,
            splice: request.splice,
            agent_down: request.agent_down,
            exclude_outbound_ports: request.exclude_outbound_ports,
            exclude_outbound_cidrs: request.exclude_outbound_cidrs,
            exclude_inbound_ports: request.exclude_inbound_ports,
        }
    }
}

/// Pods to enrol at start: `pods: [...]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PodsFile {
    pub pods: Vec<EnrollRequest>,
}

/// Why a `pods.yaml` is refused as a whole.
#[derive(Debug, thiserror::Error)]
pub enum PodsFileError {
    #[error("{path} can't be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("{path} is not a list of pods")]
    Parse { path: PathBuf, source: serde_yaml_ng::Error },
    #[error("{path}: uid `{uid}` is given twice")]
    Twice { path: PathBuf, uid: WorkloadUid },
}

impl PodsFile {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// It can't be read, an entry is wrong (with line and column), or two entries
    /// have the same uid.
    pub fn read(path: &Path) -> Result<Self, PodsFileError> {
        let text = fs::read_to_string(path)
            .map_err(|source| PodsFileError::Read { path: path.to_owned(), source })?;
        let file: Self = serde_yaml_ng::from_str(&text)
            .map_err(|source| PodsFileError::Parse { path: path.to_owned(), source })?;
        let mut seen = BTreeSet::new();
        for pod in &file.pods {
            if !seen.insert(&pod.uid) {
                return Err(PodsFileError::Twice { path: path.to_owned(), uid: pod.uid.clone() });
            }
        }
        Ok(file)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(extra: &str) -> Result<EnrollRequest, String> {
        let yaml = format!("uid: u1\nname: web-1\nnamespace: shop\nservice_account: web\n{extra}");
        serde_yaml_ng::from_str(&yaml).map_err(|error| error.to_string())
    }

    #[test]
    fn an_entry_survives_the_round_trip_as_json() {
        let request = parse(
            "netns: /run/netns/web\nlabels: {app: web}\nmtls: permissive\nsplice: on\nredirect_peer: on\n\
             agent_down: keep\n\
             exclude_outbound_ports: [53]\nexclude_outbound_cidrs: [10.0.0.0/8]\n",
        )
        .unwrap();
        assert_eq!(request.netns, NetnsRef::Path("/run/netns/web".into()));
        assert_eq!(request.mtls, MtlsMode::Permissive);
        assert_eq!(request.redirect_peer, Some(RedirectMode::On));
        assert_eq!(request.splice, Some(SpliceMode::On));
        assert_eq!(request.agent_down, Some(AgentDown::Keep));
        let identity = request.identity("cluster.local".parse().unwrap()).unwrap();
        assert_eq!(identity.to_string(), "spiffe://cluster.local/ns/shop/sa/web");
        let json = serde_json::to_string(&request).unwrap();
        assert_eq!(serde_json::from_str::<EnrollRequest>(&json).unwrap(), request);
        assert_eq!(parse("pid: 12").unwrap().netns, NetnsRef::Pid(12));
        assert_eq!(parse("pid: 12").unwrap().mtls, MtlsMode::Strict);
    }

    #[test]
    fn what_can_not_be_honoured_is_refused_by_name() {
        for (extra, expected) in [
            ("", "either netns"),
            ("netns: /run/netns/a\npid: 3", "either netns"),
            ("netns: netns/a", "absolute"),
            ("pid: 0", "pid must not be 0"),
            ("pid: 3\nexclude_inbound_ports: [0]", "exclude_inbound_ports"),
            ("pid: 3\nexclude_outbound_cidrs: [10.0.0.0/33]", "exclude_outbound_cidrs"),
            ("pid: 3\nmtls: off", "mtls"),
            ("pid: 3\nredirect_peer: maybe", "redirect_peer"),
            ("pid: 3\nsplice: maybe", "splice"),
            ("pid: 3\nagent_down: maybe", "agent_down"),
            ("pid: 3\nport: 80", "unknown field `port`"),
        ] {
            let error = parse(extra).unwrap_err();
            assert!(error.contains(expected), "{extra:?} said {error:?}");
        }
        let yaml = "uid: u1\nname: n\nnamespace: shop\nservice_account: a b\npid: 3";
        let error = serde_yaml_ng::from_str::<EnrollRequest>(yaml).unwrap_err().to_string();
        assert!(error.contains("service account `a b`"), "{error}");
        for uid in ["", "..", ".hidden", "a/b", "a b", "ä"] {
            let json = serde_json::json!({
                "uid": uid, "name": "n", "namespace": "s", "service_account": "a", "pid": 1
            });
            assert!(serde_json::from_value::<EnrollRequest>(json).is_err(), "{uid:?} was accepted");
        }
    }

    #[test]
    fn a_pods_file_names_its_faults() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("pods.yaml");
        let entry = "{uid: u1, name: a, namespace: s, service_account: a, pid: 1}";
        fs::write(&path, format!("pods: [{entry}]")).unwrap();
        assert_eq!(PodsFile::read(&path).unwrap().pods.len(), 1);
        fs::write(&path, format!("pods: [{entry}, {entry}]")).unwrap();
        assert!(PodsFile::read(&path).unwrap_err().to_string().contains("`u1` is given twice"));
        fs::write(&path, "pods: [").unwrap();
        assert!(matches!(PodsFile::read(&path), Err(PodsFileError::Parse { .. })));
        assert!(matches!(
            PodsFile::read(&dir.path().join("none")),
            Err(PodsFileError::Read { .. })
        ));
    }
}
