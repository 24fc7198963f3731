# Sourced: real FTP servers on unprivileged ports, each serving one directory to the user `user` with the
# password `password`; on loopback, or at $SERVER_ADDRESS in the network namespace $SERVER_NETNS.
#
#   install_servers                    once; Debian's packages of them conflict, so they are unpacked
#                                      side by side and never installed
#   start_server NAME DIR PORT         NAME: vsftpd proftpd pureftpd pyftpdlib; with TLS=explicit or
#                                      TLS=implicit it speaks nothing else, with $TLS_CERT (key and
#                                      certificate), or one made for 127.0.0.1; ProFTPD asks for the
#                                      client's certificate if TLS_CLIENTS names who signs them
#   stop_servers                       those that were started by this shell
#
# With SERVER_USER set to the caller and SUDO=() no root is needed, by ProFTPD and pyftpdlib alone.
#
# shellcheck shell=bash
# shellcheck source=common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"

SERVERS="vsftpd proftpd pureftpd pyftpdlib"
SERVER_DIR=$CACHE_DIR/servers
SERVER_PIDS=() SERVER_RUNS=()
SERVER_ADDRESS=127.0.0.1 SERVER_NETNS=''
# The owner of what is served. Not nobody: vsftpd 3.0.3 enters the home first, and that has none.
SERVER_USER=daemon
# Of this shell alone: others may run servers at the same time.
PAM_FILE=/etc/pam.d/ftpfs-test-$$

install_servers() {
  packages python3 python3-venv openssl binutils || return 1
  if [ ! -e "$SERVER_DIR/usr/lib/proftpd/mod_tls.so" ] || [ ! -x "$SERVER_DIR/usr/sbin/pure-ftpd" ]; then
    update_lists || return 1
    mkdir -p "$CACHE_DIR/packages" "$SERVER_DIR"
    local name
    for name in vsftpd proftpd-core proftpd-mod-crypto pure-ftpd pure-ftpd-common; do
      (cd "$CACHE_DIR/packages" && apt-get download -qq "$name" 2>/dev/null) || return 1
      dpkg -x "$CACHE_DIR"/packages/"$name"_*.deb "$SERVER_DIR" || return 1
    done
  fi
  install_libraries || return 1
  if [ ! -x "$CACHE_DIR/venv/bin/python" ]; then
    python3 -m venv "$CACHE_DIR/venv" && "$CACHE_DIR/venv/bin/pip" -q install pyftpdlib==2.0.1 pyopenssl || return 1
  fi
}

# make_certificate FILE NAME DAYS: a self-signed one for the server's address, its key in the same file.
make_certificate() {
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj "/CN=$2" -days "$3" \
    -addext "subjectAltName=IP:$SERVER_ADDRESS" -addext basicConstraints=critical,CA:FALSE \
    -keyout "$1.key" -out "$1.crt" 2>/dev/null || return 1
  cat "$1.key" "$1.crt" >"$1"; chmod 600 "$1" "$1.key"
}

# The certificate that servers show.
need_certificate() {
  TLS_CERT=${TLS_CERT:-$CACHE_DIR/server.pem}
  [ -s "$TLS_CERT" ] || make_certificate "$TLS_CERT" "ftpfs test" 3650
}

# How such a server is mounted.
scheme() { case ${TLS:-} in '') echo ftp ;; explicit) echo ftpes ;; *) echo ftps ;; esac; }
tls_options() { [ -z "${TLS:-}" ] || echo "--tls-ca $TLS_CERT.crt"; }

# The libraries that the unpacked servers lack, by the packages they depend on.
install_libraries() {
  local server lacking=()
  for server in vsftpd proftpd pure-ftpd; do
    ldd "$SERVER_DIR/usr/sbin/$server" | grep -q 'not found' && lacking+=("$server")
  done
  [ ${#lacking[@]} = 0 ] && return 0
  local depends
  depends=$(for deb in "$CACHE_DIR"/packages/*.deb; do dpkg-deb -f "$deb" Depends Pre-Depends; done |
    sed 's/^[A-Za-z-]*: //' | tr ',' '\n' | sed 's/|.*//; s/([^)]*)//g; s/[[:space:]]//g' |
    grep -E '^lib' | grep -v '^libpam-runtime' | sort -u)
  # shellcheck disable=SC2086
  packages $depends
}

start_server() {
  local name=$1 dir=$2 port=$3 run
  [ -z "${TLS:-}" ] || need_certificate || return 1
  run=$(mktemp -d "$CACHE_DIR/run-$name-XXXXXX")
  SERVER_RUNS+=("$run")
  as_root chown "$SERVER_USER" "$dir"
  as_root chmod 755 "$dir"
  "start_$name" "$dir" "$port" "$run" || return 1
  wait_for 20 server_answers "$port" && return 0
  echo "$name did not start:" >&2
  tail -n 20 "$run/log" >&2
  return 1
}

# in_netns COMMAND…: runs where the server is.
in_netns() {
  if [ -z "$SERVER_NETNS" ]; then "$@"; else as_root nsenter --net="/run/netns/$SERVER_NETNS" "$@"; fi
}

server_answers() { in_netns bash -c "exec 3<>/dev/tcp/$SERVER_ADDRESS/$1"; }

launch() {
  local run=$1 enter=(); shift
  [ -z "$SERVER_NETNS" ] || enter=(nsenter --net="/run/netns/$SERVER_NETNS")
  setsid "${SUDO[@]}" "${enter[@]}" "$@" >"$run/log" 2>&1 </dev/null &
  SERVER_PIDS+=($!)
}

start_vsftpd() {
  # vsftpd asks PAM, which reads its services from one place only. Everybody is mapped to a user
  # without rights, with any password: this server is on loopback and ends with the test.
  printf 'auth required pam_permit.so\naccount required pam_permit.so\nsession required pam_permit.so\n' |
    as_root tee "$PAM_FILE" >/dev/null
  mkdir -p "$3/empty"
  cat >"$3/conf" <<C
listen=YES
listen_address=$SERVER_ADDRESS
listen_port=$2
background=NO
anonymous_enable=NO
local_enable=YES
guest_enable=YES
guest_username=$SERVER_USER
virtual_use_local_privs=YES
write_enable=YES
local_umask=022
local_root=$1
chroot_local_user=YES
allow_writeable_chroot=YES
pam_service_name=$(basename "$PAM_FILE")
secure_chroot_dir=$3/empty
max_clients=0
max_per_ip=${MAX_PER_IP:-0}
seccomp_sandbox=NO
isolate=NO
isolate_network=NO
xferlog_enable=NO
C
  [ -z "${TLS:-}" ] || cat >>"$3/conf" <<C
ssl_enable=YES
require_ssl_reuse=YES
force_local_data_ssl=YES
force_local_logins_ssl=YES
ssl_tlsv1=YES
ssl_ciphers=HIGH
rsa_cert_file=$TLS_CERT
rsa_private_key_file=$TLS_CERT
implicit_ssl=$([ "$TLS" = implicit ] && echo YES || echo NO)
C
  chmod 700 "$3"; as_root chown root "$3/conf"
  launch "$3" "$SERVER_DIR/usr/sbin/vsftpd" "$3/conf"
}

start_proftpd() {
  local uid gid root="DefaultRoot $1"
  # Without root there is no chroot: the served directory is the home then.
  [ "$(id -u)" = 0 ] || [ ${#SUDO[@]} != 0 ] || root=''
  uid=$(id -u $SERVER_USER); gid=$(id -g $SERVER_USER)
  printf 'user:%s:%s:%s::%s:/bin/false\n' "$(openssl passwd -1 password)" "$uid" "$gid" "$1" >"$3/passwd"
  printf 'group:x:%s:\n' "$gid" >"$3/group"
  chmod 600 "$3/passwd" "$3/group"
  cat >"$3/conf" <<C
ModulePath $SERVER_DIR/usr/lib/proftpd
ServerName test
ServerType standalone
DefaultAddress $SERVER_ADDRESS
Port $2
UseIPv6 off
UseReverseDNS off
DefaultServer on
PidFile $3/pid
ScoreboardFile $3/scoreboard
DelayEngine off
AuthOrder mod_auth_file.c
AuthUserFile $3/passwd
AuthGroupFile $3/group
RequireValidShell off
UseFtpUsers off
User $SERVER_USER
Group $(id -gn $SERVER_USER)
Umask 022 022
$root
AllowOverwrite on
AllowStoreRestart on
AllowRetrieveRestart on
MaxInstances 100
TransferLog none
WtmpLog off
SystemLog $3/system.log
${MAX_PER_IP:+MaxClientsPerHost $MAX_PER_IP}
C
  [ -z "${TLS:-}" ] || cat >>"$3/conf" <<C
LoadModule mod_tls.c
TLSEngine on
TLSRequired ${TLS_REQUIRED:-on}
TLSECCertificateFile $TLS_CERT.crt
TLSECCertificateKeyFile $TLS_CERT.key
TLSLog $3/tls.log
$([ "$TLS" = implicit ] && echo TLSOptions UseImplicitSSL)
${TLS_CLIENTS:+TLSVerifyClient on}
${TLS_CLIENTS:+TLSCACertificateFile $TLS_CLIENTS}
C
  launch "$3" "$SERVER_DIR/usr/sbin/proftpd" -n -q -c "$3/conf"
}

start_pureftpd() {
  local tls=()
  [ "${TLS:-}" != implicit ] || { echo "Pure-FTPd has no implicit TLS" >&2; return 1; }
  # 3: control and data connections must be protected.
  [ -z "${TLS:-}" ] || tls=(-Y 3 -2 "$TLS_CERT")
  (echo password; echo password) | "$SERVER_DIR/usr/bin/pure-pw" useradd user -f "$3/passwd" \
    -u "$(id -u $SERVER_USER)" -g "$(id -g $SERVER_USER)" -d "$1" -m -F "$3/pdb" >/dev/null || return 1
  launch "$3" "$SERVER_DIR/usr/sbin/pure-ftpd" -S "$SERVER_ADDRESS,$2" -l "puredb:$3/pdb" -A -E -H \
    -u 1 -c 100 -C "${MAX_PER_IP:-100}" -U 133:022 "${tls[@]}"
}

start_pyftpdlib() {
  cat >"$3/serve.py" <<'P'
import _strptime, encodings.idna, os, pwd, sys  # before the user changes: a home may be closed to it
from pyftpdlib.authorizers import DummyAuthorizer
from pyftpdlib.handlers import FTPHandler, TLS_FTPHandler
from pyftpdlib.servers import ThreadedFTPServer

root, port, user, limit = sys.argv[1], int(sys.argv[2]), pwd.getpwnam(sys.argv[3]), int(sys.argv[4])
os.umask(0o022)
authorizer = DummyAuthorizer()
authorizer.add_user("user", "password", root, perm="elradfmwMT")
tls, certificate = sys.argv[5], sys.argv[6]
handler = FTPHandler
if tls:
    class handler(TLS_FTPHandler):
        certfile = certificate
        tls_control_required = tls_data_required = True
        def handle(self):
            if tls == "implicit":
                self.secure_connection(self.ssl_context)
            else:
                super().handle()
        def handle_ssl_established(self):
            if tls == "implicit":
                super().handle()
    handler.ssl_context = handler.get_ssl_context()
handler.authorizer = authorizer
server = ThreadedFTPServer((sys.argv[7], port), handler)
if os.getuid() == 0:
    os.setgroups([]); os.setgid(user.pw_gid); os.setuid(user.pw_uid)
server.max_cons, server.max_cons_per_ip = 500, limit
server.serve_forever()
P
  launch "$3" "$CACHE_DIR/venv/bin/python" "$3/serve.py" "$1" "$2" "$SERVER_USER" "${MAX_PER_IP:-0}" \
    "${TLS:-}" "${TLS_CERT:-}" "$SERVER_ADDRESS"
}

stop_servers() {
  local pid
  for pid in "${SERVER_PIDS[@]:-}"; do
    [ -n "$pid" ] || continue
    # Each is the leader of its own session: its children go with it.
    as_root pkill -TERM -s "$pid" 2>/dev/null
    as_root kill -TERM "$pid" 2>/dev/null
    wait_for 5 sh -c "! kill -0 $pid 2>/dev/null" || as_root pkill -KILL -s "$pid"
  done
  as_root rm -f "$PAM_FILE"
  [ ${#SERVER_RUNS[@]} = 0 ] || as_root rm -rf "${SERVER_RUNS[@]}"
  SERVER_PIDS=() SERVER_RUNS=()
}
