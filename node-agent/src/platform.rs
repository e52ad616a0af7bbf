//! What programs on this node are built for. Says what the node is; what may run on it is the domain's to judge.

use upfleet_domain::release::Platform;

/// Operating system and processor of this node, in the words of manifests.
#[must_use]
pub fn node_platform() -> Platform {
    let machine = rustix::system::uname().machine().to_string_lossy().into_owned();
    let arch = match machine.as_str() {
        "x86_64" => "amd64".to_owned(),
        "aarch64" => "arm64".to_owned(),
        _ => machine,
    };
    Platform { os: "linux".to_owned(), arch }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_speaks_the_words_of_manifests() {
        let platform = node_platform();
        assert_eq!(platform.os, "linux");
        assert!(!platform.arch.is_empty() && !platform.arch.contains('_'), "{platform}");
    }
}
