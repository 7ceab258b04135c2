//! Parameters of Open MPI that hpml sets where the user has not.

use super::variable;

/// Sets Open MPI's parameters for a fast all-reduce on one host: no kernel-assisted copies, segmented ring.
///
/// Open MPI's defaults are 2 to 4 times slower there (44.7 MB on 2 ranks: 18.4 -> 5.3 ms). Only if all ranks are on one host,
/// by the launcher's variables, and only what the user has not set: over a network the cluster's own settings stand.
pub(super) fn tune() {
    let ranks = variable("OMPI_COMM_WORLD_SIZE");
    if ranks.is_some() && ranks == variable("OMPI_COMM_WORLD_LOCAL_SIZE") {
        for (name, value) in [
            ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
            ("OMPI_MCA_coll_tuned_use_dynamic_rules", "1"),
            ("OMPI_MCA_coll_tuned_allreduce_algorithm", "5"),
            ("OMPI_MCA_coll_tuned_allreduce_algorithm_segmentsize", "1048576"),
        ] {
            crate::sys::default_environment(name, value);
        }
    }
}
