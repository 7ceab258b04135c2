//! Parameters of MPI libraries that hpml sets where the user has not. In: the library, the launcher's variables and this
//! process's CPUs. Out: environment variables, which the library reads when it is initialized. All ranks set the same.

use super::affinity::Surroundings;
use super::variable;

/// Sets the parameters of the MPI library named `library`. Only if all ranks are on one host, by the launcher's variables: over
/// a network the cluster's own settings stand, and ranks of different hosts could decide differently.
pub(super) fn tune(library: &str, surroundings: &Surroundings) {
    for (name, value) in parameters(library, &variable, surroundings.host.count()) {
        crate::sys::default_environment(name, value);
    }
}

/// Names and values for `library`, by the variables that `read` finds, on a host of `cores` cores.
fn parameters(library: &str, read: &dyn Fn(&str) -> Option<String>, cores: usize) -> Vec<(&'static str, &'static str)> {
    let number = |name: &str| read(name)?.parse::<usize>().ok();
    let on_one_host = |all: &str, here: &str| number(all).filter(|ranks| number(here) == Some(*ranks));
    let mut found = Vec::new();
    if library.starts_with("Open MPI") && on_one_host("OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE").is_some() {
        // No kernel-assisted copies, segmented ring. The defaults are 2 to 4 times slower (44.7 MB on 2 ranks: 18.4 -> 5.3 ms).
        found.extend([
            ("OMPI_MCA_btl_vader_single_copy_mechanism", "none"),
            ("OMPI_MCA_coll_tuned_use_dynamic_rules", "1"),
            ("OMPI_MCA_coll_tuned_allreduce_algorithm", "5"),
            ("OMPI_MCA_coll_tuned_allreduce_algorithm_segmentsize", "1048576"),
        ]);
        if !library.starts_with("Open MPI v4") {
            // Without a fabric UCX reports six errors for each window and pair of ranks, and another component makes it.
            found.push(("OMPI_MCA_osc", "^ucx"));
        }
    }
    let crowded = on_one_host("PMI_SIZE", "MPI_LOCALNRANKS").is_some_and(|ranks| ranks > cores);
    if crowded && library.starts_with("MPICH Version: 5") {
        // Collectives by its shared memory spin without giving up the core: 1 MiB on 4 ranks of 2 cores took 1 to 2 s.
        found.push(("MPIR_CVAR_DEVICE_COLLECTIVES", "none"));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(library: &str, variables: &[(&str, &str)], cores: usize) -> Vec<&'static str> {
        let read = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| value.to_string());
        parameters(library, &read, cores).into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn a_library_is_tuned_on_one_host_and_only_with_its_own_parameters() {
        let open = |all, here| [("OMPI_COMM_WORLD_SIZE", all), ("OMPI_COMM_WORLD_LOCAL_SIZE", here)];
        let hydra = |all, here| [("PMI_SIZE", all), ("MPI_LOCALNRANKS", here)];
        assert_eq!(names("Open MPI v4.1.4", &open("4", "4"), 2).len(), 4);
        assert!(names("Open MPI v5.0.11", &open("4", "4"), 2).contains(&"OMPI_MCA_osc"));
        assert_eq!(names("Open MPI v5.0.11", &open("4", "2"), 2), [""; 0]);
        assert_eq!(names("Open MPI v5.0.11", &[], 2), [""; 0]);
        let crowded = ["MPIR_CVAR_DEVICE_COLLECTIVES"];
        assert_eq!(names("MPICH Version: 5.0.2", &hydra("4", "4"), 2), crowded);
        for (library, variables, cores) in [
            ("MPICH Version: 5.0.2", hydra("4", "4"), 4),
            ("MPICH Version: 5.0.2", hydra("4", "2"), 2),
            ("MPICH Version: 4.0.2", hydra("4", "4"), 2),
            ("Intel(R) MPI Library 2021.19 for Linux* OS", hydra("4", "4"), 2),
            ("MPICH Version: 5.0.2", open("4", "4"), 2),
        ] {
            assert_eq!(names(library, &variables, cores), [""; 0], "{library} {variables:?} {cores}");
        }
    }
}
