# shellcheck shell=bash
# Sourced by scripts/demo, scripts/test and scripts/platform: installs what is missing and makes the virtual environment.
# Root installs packages; an ordinary user is told what is missing, and the scripts go on with what works.

top=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv="$top/.venv"

# program:Debian package:Fedora/RHEL package; an entry that begins with / is a file (a pattern) instead of a program
needed_to_run="podman:podman:podman crun:crun:crun newuidmap:uidmap:shadow-utils fuse-overlayfs:fuse-overlayfs:fuse-overlayfs
  fusermount3:fuse3:fuse3 mksquashfs:squashfs-tools:squashfs-tools setpriv:util-linux:util-linux
  busybox:busybox-static:busybox docker-registry:docker-registry:docker-distribution"
needed_to_test="squashfuse_ll:squashfuse:squashfuse debootstrap:debootstrap:debootstrap setfattr:attr:attr
  setcap:libcap2-bin:libcap slirp4netns:slirp4netns:slirp4netns catatonit:catatonit:catatonit
  gcc:gcc:gcc /usr/include/python3*/Python.h:python3-dev:python3-devel /usr/include/lzo/lzo1x.h:liblzo2-dev:lzo-devel
  /usr/include/fuse3/fuse.h:libfuse3-dev:fuse3-devel pkg-config:pkg-config:pkgconf-pkg-config
  make:make:make dpkg-source:dpkg-dev:dpkg-dev /usr/include/zlib.h:zlib1g-dev:zlib-devel /usr/include/lzma.h:liblzma-dev:xz-devel
  /usr/include/lz4.h:liblz4-dev:lz4-devel /usr/include/zstd.h:libzstd-dev:libzstd-devel
  pgrep:procps:procps-ng runc:runc:runc
  /usr/lib/*/libibverbs/libmlx5-rdmav*.so:ibverbs-providers:libibverbs /usr/lib/*/librdmacm.so.1:librdmacm1:librdmacm
  sshd:openssh-server:openssh-server ssh:openssh-client:openssh-clients ip:iproute2:iproute
  slapd:slapd:openldap-servers ldapsearch:ldap-utils:openldap-clients sssd:sssd-common:sssd-common
  /usr/lib/*/sssd/libsss_ldap.so:sssd-ldap:sssd-ldap /usr/lib/*/sssd/libsss_ipa.so:sssd-ipa:sssd-ipa
  /usr/lib/*/libnss_sss.so.2:libnss-sss:sssd-client /usr/lib/*/sasl2/libanonymous.so:libsasl2-modules:cyrus-sasl-lib"
# the MPI of the host in test_mpi_swap.py, which is for Debian 12; Debian 13's brings 400 MiB of GPU compilers
needed_to_swap="/usr/lib/*/libmpich.so.12:libmpich12:mpich"
# the cluster of test_slurm.py, for Debian 12 too: its MPICH is the host's there
needed_to_slurm="slurmctld:slurmctld:slurm-slurmctld slurmd:slurmd:slurm-slurmd srun:slurm-client:slurm munged:munge:munge
  /usr/lib/*/slurm-wlm/mpi_pmi2.so:slurm-wlm-basic-plugins:slurm /usr/lib/*/pmix2/lib/libpmix.so:libpmix-dev:pmix-devel
  ip:iproute2:iproute"
# podman-hpc's mount program waits with inotifywait
needed_to_bench="sqfstar:squashfs-tools:squashfs-tools inotifywait:inotify-tools:inotify-tools losetup:mount:util-linux"
test_extras='[test,lzo,pyfuse3,bench,import,ldap]'

say() { printf '%s\n' "$*" >&2; }

install_programs() { # "program:deb:rpm ..." : install the packages of the programs that are missing
  local entry program deb rpm missing=() debs=() rpms=()
  for entry in $1; do
    IFS=: read -r program deb rpm <<<"$entry"
    present "$program" || { missing+=("$program"); debs+=("$deb"); rpms+=("$rpm"); }
  done
  [ -n "$(find_python)" ] || { missing+=("python >= 3.11"); debs+=(python3 python3-venv); rpms+=(python3.11); }
  "$(find_python || echo false)" -c 'import ensurepip' 2>/dev/null || { missing+=("python venv"); debs+=(python3-venv); }
  [ ${#missing[@]} = 0 ] && return
  if [ "$(id -u)" != 0 ]; then
    say "Missing programs: ${missing[*]}"
    say "  as root on Debian: apt-get install ${debs[*]}"
    say "  as root on Fedora or RHEL: dnf install ${rpms[*]:-${debs[*]}}"
    say "Going on with what works."
  elif command -v apt-get >/dev/null; then
    say "Installing: ${debs[*]}"
    apt_install "${debs[@]}"
  elif command -v dnf >/dev/null; then
    # one by one: some are in EPEL or have another name, and one that is unknown must not keep the others away
    for rpm in "${rpms[@]}"; do
      say "Installing: $rpm"
      dnf install -y "$rpm" >&2 </dev/null || say "$rpm cannot be installed (EPEL?): going on without it"
    done
  else
    say "Neither apt-get nor dnf is here; install by hand: ${missing[*]}"
  fi
}

present() { # PROGRAM or /FILE/PATTERN
  case $1 in
    /*) compgen -G "$1" >/dev/null ;;
    *) PATH="$PATH:/usr/sbin:/sbin" command -v "$1" >/dev/null ;;
  esac
}

apt_install() { # services that the packages bring (a registry, slapd, sssd) must not start on this machine
  local rc=0 policy=/usr/sbin/policy-rc.d made= nsswitch
  [ -e "$policy" ] || { printf '#!/bin/sh\nexit 101\n' >"$policy"; chmod 755 "$policy"; made=1; }
  nsswitch=$(cat /etc/nsswitch.conf 2>/dev/null)
  { apt-get update -q && DEBIAN_FRONTEND=noninteractive apt-get install -yq --no-install-recommends "$@"; } >&2 </dev/null || rc=$?
  [ -z "$made" ] || rm -f "$policy"
  # libnss-sss puts sss in it: only the lab's copy asks sssd
  [ "$nsswitch" = "$(cat /etc/nsswitch.conf 2>/dev/null)" ] || printf '%s\n' "$nsswitch" >/etc/nsswitch.conf
  return "$rc"
}

find_python() { # the system's own Python: one below somebody's home cannot be executed by the test users
  local python
  for python in /usr/bin/python3 /usr/bin/python3.{14,13,12,11} /usr/local/bin/python3; do
    [ -x "$python" ] && "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' && { echo "$python"; return; }
  done
  return 1
}

make_venv() { # EXTRAS: an editable install of this checkout with extras, remade when pyproject.toml changes
  local stamp="$venv/.made-from" want
  want="$(find_python) $1 $(sha256sum <"$top/pyproject.toml")"
  [ "$(cat "$stamp" 2>/dev/null)" = "$want" ] && return
  say "Making the virtual environment $venv"
  "$(find_python)" -m venv --clear "$venv"
  if pip_install "$top$1"; then
    echo "$want" >"$stamp"
  else # no stamp: the next start tries again
    say "Not everything in $1 can be built here (what needs a compiler: see above). Going on with what works."
    pip_install "$top[test]"
  fi
}

pip_install() { # DIRECTORY[EXTRAS]
  "$venv/bin/pip" install -q --disable-pip-version-check -e "$1" 2> >(grep -v '^WARNING: Location' >&2)
}
