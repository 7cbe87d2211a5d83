"""The keys of containers.conf and their types (containers/common pkg/config/config.go, containers.conf(5)).

Podman warns of an unknown key and refuses a file with a wrong type, as with storage.conf.
"""

Keys = dict[str, type]


def _typed(kind: type, words: str) -> Keys:
    return dict.fromkeys(words.split(), kind)


_CONTAINERS: Keys = (
    _typed(
        str,
        "apparmor_profile base_hosts_file cgroupns cgroups default_mounts_file "
        "host_containers_internal_ip init_path interface_name ipcns log_driver log_path log_tag netns "
        "pidns seccomp_profile shm_size tz umask userns utsns",
    )
    | _typed(
        list,
        "annotations cgroup_conf default_capabilities default_sysctls default_ulimits devices "
        "dns_options dns_searches dns_servers env mounts volumes",
    )
    | _typed(
        bool,
        "container_name_as_hostname enable_keyring enable_labeling env_host http_proxy init keyring "
        "label label_users no_hosts prepare_volume_on_create privileged read_only",
    )
    | _typed(
        int,
        "log_size_max oom_score_adj pids_limit userns_size",
    )
)
_ENGINE: Keys = (
    _typed(
        str,
        "active_service cgroup_manager compression_format database_backend detach_keys "
        "events_logfile_path events_logger image_copy_tmp_dir image_default_format "
        "image_default_transport image_volume_mode infra_command infra_image kube_generate_type "
        "lock_type machine_image namespace network_cmd_path pod_exit_policy pull_policy remote_identity "
        "remote_uri retry_delay runtime service_destination signature_policy_path static_dir tmp_dir "
        "volume_path",
    )
    | _typed(
        list,
        "add_compression additional_layer_stores cdi_spec_dirs compose_providers conmon_env_vars "
        "conmon_path conmonrs_path env helper_binaries_dir hooks_dir network_cmd_options "
        "runtime_supports_json runtime_supports_kvm runtime_supports_nocgroups runtimes_flags",
    )
    | _typed(
        bool,
        "compat_api_enforce_docker_hub compose_warning_logs enable_port_forwarding "
        "enable_port_reservation events_container_create_inspect_data healthcheck_events "
        "multi_image_archive no_pivot_root remote sdnotify",
    )
    | _typed(
        int,
        "compression_level exit_command_delay image_parallel_copies num_locks retry service_timeout "
        "stop_timeout volume_plugin_timeout",
    )
    | _typed(
        dict,
        "platform_to_oci_runtime runtimes service_destinations volume_plugins",
    )
    | _typed(
        object,
        "events_logfile_max_size",
    )
)
_NETWORK: Keys = (
    _typed(
        str,
        "default_network default_rootless_network_cmd default_subnet firewall_driver network_backend "
        "network_config_dir",
    )
    | _typed(
        list,
        "cni_plugin_dirs default_subnet_pools netavark_plugin_dirs pasta_options",
    )
    | _typed(
        int,
        "dns_bind_port",
    )
)
_TOP: Keys = _typed(dict, "containers engine machine network secrets configmaps farms podmansh")

TABLES: dict[tuple[str, ...], Keys] = {
    (): _TOP,
    ("containers",): _CONTAINERS,
    ("engine",): _ENGINE,
    ("network",): _NETWORK,
}

CHOICES: dict[tuple[str, str], tuple[str, ...]] = {
    ("containers", "cgroupns"): ("host", "private"),
    ("containers", "cgroups"): ("enabled", "disabled", "no-conmon", "split"),
    ("engine", "cgroup_manager"): ("systemd", "cgroupfs"),
    ("engine", "events_logger"): ("journald", "file", "none"),
    ("engine", "lock_type"): ("shm", "file"),
    ("engine", "pull_policy"): ("always", "missing", "ifnotpresent", "never", "newer"),
    ("network", "network_backend"): ("", "netavark", "cni"),
}

GONE: dict[tuple[str, str, str], tuple[int, str]] = {
    ("network", "network_backend", "cni"): (5, "netavark"),
    ("network", "default_rootless_network_cmd", "slirp4netns"): (6, "pasta"),
    ("containers", "netns", "slirp4netns"): (6, "pasta"),
    ("engine", "database_backend", "boltdb"): (6, "sqlite"),
}
"""Values that a Podman no longer has: since which, and what instead."""
