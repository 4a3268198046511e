#!/usr/bin/env bash
# Try what is in this folder, on a machine with Docker (or ENGINE=podman) and dcmtk. From the project's root:
#
#   edge/packaging/try.sh BUNDLE
#
# First the image: built, run as its head says, a study sent through it by 'edge doctor', stopped. Then, in a container
# whose first process is systemd, the unit: installed as its head says, tried the same way, killed, and made to hang.
# Ports 11112, 11113 and 8080 must be free. BUILD_OPTIONS and RUN_OPTIONS are added to the engine's commands.
set -euo pipefail
bundle=$(realpath "$1")
engine=${ENGINE:-docker}
packaging=$(dirname "$(realpath "$0")")
work=$(mktemp -d)
read -ra build <<<"$engine build ${BUILD_OPTIONS:-}"
read -ra run <<<"$engine run --detach --network host ${RUN_OPTIONS:-}"
trap '"$engine" rm --force ok-image ok-unit >/dev/null 2>&1 || true; kill "${archive:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

say() { printf '\n== %s\n' "$*"; }

ready() {
  for _ in $(seq 120); do
    curl --silent http://localhost:8080/readyz | grep --quiet '"ready":true' && return
    sleep 1
  done
  curl --silent http://localhost:8080/readyz || true
  return 1
}

restarted() { # after how many restarts it must be active again
  for _ in $(seq 100); do
    told=$("$engine" exec ok-unit systemctl show --property NRestarts,ActiveState --value orthokernels-edge | sort | xargs)
    [[ $told == "$1 active" ]] && return
    sleep 1
  done
  echo "restarts and state: $told, not $1 active"
  return 1
}

mkdir "$work/archive" "$work/etc" "$work/systemd"
storescp --aetitle PACS --output-directory "$work/archive" 11113 &
archive=$!

say "The image is built"
"${build[@]}" --tag orthokernels-edge --file "$packaging/Dockerfile" "$packaging/../.."
"$engine" run --rm --network none ${RUN_OPTIONS:-} --entrypoint sh orthokernels-edge -c \
  'orthokernels edge init /tmp/appliance.toml >/dev/null && cat /tmp/appliance.toml' >"$work/etc/appliance.toml"
sed --in-place 's|^# bundle = .*|bundle = "/bundle"|' "$work/etc/appliance.toml"
cat >>"$work/etc/appliance.toml" <<'END'
[[receive.peers]]
ae_title = "DOCTOR"
hosts = ["127.0.0.1/32"]
deliver = false
[[destinations]]
name = "archive"
ae_title = "PACS"
host = "127.0.0.1"
port = 11113
END
chmod 755 "$work" "$work/etc" && chmod 644 "$work/etc/appliance.toml"

say "It runs with a read-only root and no capability"
"${run[@]}" --name ok-image --read-only --tmpfs /tmp --cap-drop ALL --security-opt no-new-privileges --memory 12g \
  --volume "$work/etc:/etc/orthokernels:ro" --volume "$bundle:/bundle:ro" --volume /var/lib/orthokernels \
  orthokernels-edge
ready
"$engine" exec ok-image sh -c 'id; grep -E "CapEff|NoNewPrivs" /proc/self/status; ! touch /opt/x'
"$engine" exec ok-image orthokernels edge doctor --config /etc/orthokernels/appliance.toml
"$engine" exec ok-image orthokernels edge probe --config /etc/orthokernels/appliance.toml
"$engine" stop ok-image
[[ $("$engine" inspect --format '{{.State.ExitCode}}' ok-image) == 0 ]]

say "The unit, under a systemd of its own"
cat >"$work/systemd/Dockerfile" <<'END'
FROM orthokernels-edge
USER root
RUN userdel orthokernels && apt-get update && apt-get install --yes --no-install-recommends systemd systemd-sysv dbus
ENTRYPOINT ["/sbin/init"]
CMD []
END
"${build[@]}" --tag orthokernels-edge-systemd "$work/systemd"
systemd=(); [[ $engine == podman ]] && systemd=(--systemd=always)
"${run[@]}" --name ok-unit --privileged "${systemd[@]}" --tmpfs /run --volume "$bundle:/bundle:ro" \
  --volume "$packaging:/packaging:ro" --volume "$work/etc:/configuration:ro" orthokernels-edge-systemd
"$engine" exec ok-unit bash -euxc '
  cd /packaging
  install -m 644 orthokernels.sysusers /usr/lib/sysusers.d/orthokernels.conf && systemd-sysusers
  install -d -m 750 -g orthokernels /etc/orthokernels
  install -m 640 -g orthokernels /configuration/appliance.toml /etc/orthokernels/
  install -m 644 orthokernels-edge.service /etc/systemd/system/
  systemctl enable --now orthokernels-edge'
ready
"$engine" exec ok-unit bash -euc '
  pid=$(systemctl show --property MainPID --value orthokernels-edge)
  grep -E "^(CapEff|CapBnd|NoNewPrivs|Seccomp:)" /proc/$pid/status
  ! nsenter --target $pid --mount touch /usr/x
  runuser -u orthokernels -- /opt/orthokernels/bin/orthokernels edge doctor --config /etc/orthokernels/appliance.toml'

say "Killed, and then made to hang until the watchdog sees it"
"$engine" exec ok-unit systemctl kill --signal KILL --kill-who main orthokernels-edge
restarted 1
"$engine" exec ok-unit systemctl kill --signal STOP --kill-who main orthokernels-edge
restarted 2
ready
"$engine" exec ok-unit systemctl stop orthokernels-edge
[[ $("$engine" exec ok-unit systemctl show --property Result --value orthokernels-edge) == success ]]
say "All is in order"
