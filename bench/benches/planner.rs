//! How long a plan takes for 100,000 nodes. `cargo bench -p upfleet-bench` prints it; nothing is asserted,
//! since machines differ.

use upfleet_bench::{
    fleet::{fleet, spec},
    timing::time,
};
use upfleet_domain::rollout::plan::plan;

fn main() {
    for nodes in [1_000, 10_000, 100_000] {
        let fleet = fleet(nodes);
        for selector in ["*", "env=prod"] {
            let spec = spec(selector);
            let timing = time(10, || plan(&spec, &fleet).expect("the spec is valid"));
            println!(
                "planner {nodes} nodes, selector {selector:?}: median {:?}, min {:?}, max {:?}",
                timing.median, timing.min, timing.max
            );
        }
    }
}
