//! The one table of method × caller. What has no row is refused to everybody.

use super::{Principal, Role};

/// Who may call a method.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Callers {
    /// Nodes' agents, each for itself only.
    pub node: bool,
    /// Users in these roles.
    pub roles: &'static [Role],
}

impl Callers {
    /// Whether `principal` is among them.
    #[must_use]
    pub fn admit(&self, principal: &Principal) -> bool {
        match principal {
            Principal::Node(_) => self.node,
            Principal::User { role, .. } => self.roles.contains(role),
        }
    }
}

impl std::fmt::Display for Callers {
    /// As a refused caller reads it: `operator or admin`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let node = self.node.then_some("node");
        let names: Vec<&str> = node.into_iter().chain(self.roles.iter().map(|role| role.as_str())).collect();
        match names.split_last() {
            None => f.write_str("nobody"),
            Some((last, [])) => f.write_str(last),
            Some((last, rest)) => write!(f, "{} or {last}", rest.join(", ")),
        }
    }
}

use Role::{Admin, Operator, Publisher, Viewer};

const ADMINS: Callers = Callers { node: false, roles: &[Admin] };
const OPERATORS: Callers = Callers { node: false, roles: &[Operator, Admin] };
const PUBLISHERS: Callers = Callers { node: false, roles: &[Publisher, Admin] };
const READERS: Callers = Callers { node: false, roles: &[Viewer, Operator, Publisher, Admin] };
const ANYBODY: Callers = Callers { node: true, roles: &[Viewer, Operator, Publisher, Admin] };
const NODES: Callers = Callers { node: true, roles: &[] };
/// For methods that are served on another listener: not on this one.
const NOBODY: Callers = Callers { node: false, roles: &[] };

/// All methods of the main listener, by their path on the wire.
pub const METHODS: &[(&str, Callers)] = &[
    ("/upfleet.v1.AgentService/Session", NODES),
    ("/upfleet.v1.ArtifactService/UploadArtifact", PUBLISHERS),
    ("/upfleet.v1.ArtifactService/GetArtifactUpload", PUBLISHERS),
    ("/upfleet.v1.ArtifactService/DownloadArtifact", ANYBODY),
    ("/upfleet.v1.ArtifactService/GetArtifact", READERS),
    ("/upfleet.v1.ArtifactService/ListArtifacts", READERS),
    ("/upfleet.v1.ArtifactService/DeleteArtifact", PUBLISHERS),
    // Its own listener serves it to whoever proves a token or a key.
    ("/upfleet.v1.EnrollmentService/Enroll", NOBODY),
    ("/upfleet.v1.EnrollmentService/RenewExpired", NOBODY),
    ("/upfleet.v1.NodeService/GetNode", READERS),
    ("/upfleet.v1.NodeService/ListNodes", READERS),
    ("/upfleet.v1.NodeService/WatchNodes", READERS),
    ("/upfleet.v1.NodeService/UpdateNode", OPERATORS),
    ("/upfleet.v1.NodeService/CordonNode", OPERATORS),
    ("/upfleet.v1.NodeService/UncordonNode", OPERATORS),
    ("/upfleet.v1.NodeService/RetireNode", ADMINS),
    ("/upfleet.v1.NodeService/HoldComponent", OPERATORS),
    ("/upfleet.v1.NodeService/ReleaseComponent", OPERATORS),
    ("/upfleet.v1.NodeService/TailComponentLog", READERS),
    ("/upfleet.v1.NodeService/ListJvms", READERS),
    ("/upfleet.v1.NodeService/ListNodeHistory", READERS),
    ("/upfleet.v1.NodeService/CreateEnrollmentToken", ADMINS),
    ("/upfleet.v1.NodeService/ListEnrollmentTokens", ADMINS),
    ("/upfleet.v1.NodeService/RevokeEnrollmentToken", ADMINS),
    ("/upfleet.v1.PatchService/ListFixStates", READERS),
    ("/upfleet.v1.PatchService/ListPatchCounts", READERS),
    ("/upfleet.v1.ReleaseService/CreateRelease", PUBLISHERS),
    ("/upfleet.v1.ReleaseService/GetRelease", READERS),
    ("/upfleet.v1.ReleaseService/ListReleases", READERS),
    ("/upfleet.v1.ReleaseService/YankRelease", PUBLISHERS),
    ("/upfleet.v1.ReleaseService/UnquarantineRelease", OPERATORS),
    ("/upfleet.v1.RolloutService/CreateRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/StartRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/GetRollout", READERS),
    ("/upfleet.v1.RolloutService/ListRollouts", READERS),
    ("/upfleet.v1.RolloutService/ListUpgrades", READERS),
    ("/upfleet.v1.RolloutService/WatchRollout", READERS),
    ("/upfleet.v1.RolloutService/ApproveRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/PauseRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/ResumeRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/CancelRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/RetryRollout", OPERATORS),
    ("/upfleet.v1.RolloutService/SkipNode", OPERATORS),
    ("/upfleet.v1.RolloutService/RollBackRollout", OPERATORS),
    ("/upfleet.v1.UserService/IssueUserCertificate", ADMINS),
    ("/upfleet.v1.UserService/ListUsers", ADMINS),
    ("/upfleet.v1.UserService/RevokeUser", ADMINS),
    ("/upfleet.v1.UserService/GetCaller", ANYBODY),
    // Standard services that are served beside ours.
    ("/grpc.health.v1.Health/Check", ANYBODY),
    ("/grpc.health.v1.Health/List", ANYBODY),
    ("/grpc.health.v1.Health/Watch", READERS),
    ("/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", READERS),
    ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", READERS),
];

/// The row of a method; `None` where it has none.
#[must_use]
pub fn callers(path: &str) -> Option<Callers> {
    METHODS.iter().find(|(method, _)| *method == path).map(|(_, callers)| *callers)
}

#[cfg(test)]
mod tests;
