#!/usr/bin/env bash
# Check Tessera with TensorRT on a machine with Docker and an NVIDIA GPU, and write one file to send back.
#
#   deploy/verify-tensorrt.sh [--dry-run] [--work FOLDER] [--triton TAG] [--gpus GPUS] [STEP OPTION]...
#
#   --dry-run      print the docker commands, and run nothing
#   --work FOLDER  where bundles and results go (default: out/verify; about 120 GB for all bundles)
#   --triton TAG   release of NVIDIA's Triton container (default: the Dockerfile's)
#   --gpus GPUS    what docker run --gpus gets (default: device=0)
#   STEP OPTION    handed to bench.tensorrt.run, such as --only=versions,bundle-demo,compile-demo
#
# docs/internals/tensorrt.md says what it does and how long it takes.
set -euo pipefail
cd "$(dirname "$0")/.."

work=out/verify
triton=$(sed -n 's/^ARG TRITON=//p' Dockerfile)
gpus=device=0
dry=
options=()
needed_gb=120
name=tessera-verify-$$

stop() {
    echo "verify-tensorrt.sh: $*" >&2
    exit 2
}

while [ $# -gt 0 ]; do
    case $1 in
        --help | -h) sed -n '2,/^set /{/^#/s/^# \{0,1\}//p}' "$0"; exit 0 ;;
        --dry-run) dry=1 ;;
        --work | --triton | --gpus)
            [ $# -gt 1 ] || stop "$1 needs a value"
            case $1 in --work) work=$2 ;; --triton) triton=$2 ;; --gpus) gpus=$2 ;; esac
            shift
            ;;
        *) options+=("$1") ;;
    esac
    shift
done
case $triton in
    [0-9][0-9].[0-9][0-9]) ;;
    *) stop "--triton is '$triton'; accepted: a release such as 26.11" ;;
esac

# Not as root, whoever calls: the image has to work without.
user=$(id -u):$(id -g)
[ "$(id -u)" != 0 ] || user=1000:1000

call() { # print a command, and run it unless this is a dry run
    printf '+'
    printf ' %q' "$@"
    printf '\n'
    [ -n "$dry" ] || "$@"
}

note() { # a line about the host, for the report
    [ -n "$dry" ] || echo "$1: $2" >>"$work/host.txt"
}

check_host() {
    command -v docker >/dev/null || stop "docker is not installed; see https://docs.docker.com/engine/install"
    docker info >/dev/null 2>&1 || stop "docker does not answer; start it, or join its group: sudo usermod -aG docker \$USER"
    command -v nvidia-smi >/dev/null || stop "nvidia-smi is missing; install NVIDIA's driver"
    driver=$(nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader) ||
        stop "nvidia-smi fails; is NVIDIA's driver loaded?"
    mkdir -p "$work/out" "$work/home" || stop "--work $work cannot be written"
    free=$(df --output=avail -BG "$work" | tail -n 1 | tr -dc 0-9)
    [ "$free" -ge "$needed_gb" ] || [ ${#options[@]} -gt 0 ] ||
        stop "$work has $free GB free; $needed_gb GB are needed. Name another --work, or steps with --only"
}

check_gpus() {
    docker run --rm --gpus "$gpus" --entrypoint nvidia-smi "$1" -L >/dev/null ||
        stop "docker run --gpus $gpus fails; install the NVIDIA Container Toolkit: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit"
}

serve_read_only() { # the image as it is served: its own user, nothing writable but what is documented
    local since=$SECONDS state=starting
    call docker run --detach --name "$name" --gpus "$gpus" --read-only --tmpfs /tmp --shm-size=4g \
        --stop-timeout=60 tessera:verify-serve /bundles/demo --engine=torch ||
        { note "read-only image" "docker run failed"; return; }
    [ -z "$dry" ] || return 0
    while [ "$state" = starting ] && [ $((SECONDS - since)) -lt 600 ]; do
        sleep 5
        state=$(docker inspect --format '{{if .State.Running}}{{.State.Health.Status}}{{else}}ended{{end}}' "$name")
    done
    note "read-only image" "$state after $((SECONDS - since)) s"
    docker logs --tail 20 "$name" >"$work/out/image.log" 2>&1 || true
}

[ -n "$dry" ] || check_host
work=$(realpath -m "$work")
if [ -z "$dry" ]; then
    [ "$(id -u)" != 0 ] || chown 1000:1000 "$work" "$work/out" "$work/home"
    : >"$work/host.txt"
    trap 'docker rm --force "$name" >/dev/null 2>&1 || true' EXIT
    note docker "$(docker version --format '{{.Server.Version}}')"
    note GPU "$(tr '\n' ';' <<<"$driver")"
fi
for stage in serve verify; do
    call docker build --build-arg "TRITON=$triton" --target "$stage" --tag "tessera:verify-$stage" . ||
        stop "the image was not built; the lines above say why"
done
if [ -z "$dry" ]; then
    check_gpus tessera:verify-serve
    note "Triton container" "$triton"
    note "image size" "$(docker image inspect --format '{{.Size}}' tessera:verify-serve) bytes"
fi
serve_read_only
[ -n "$dry" ] || docker rm --force "$name" >/dev/null 2>&1 || true # the GPU is for the steps now
status=0
call docker run --rm --gpus "$gpus" --read-only --user "$user" --tmpfs /tmp:exec --shm-size=16g \
    --volume "$work:/checks" --env HOME=/checks/home --env XDG_CACHE_HOME=/checks/home \
    --env OUT=/checks/out --env VERIFY_WORK=/checks tessera:verify-verify "${options[@]}" || status=$?
[ -n "$dry" ] || echo "verify-tensorrt.sh: send back $work/out/tessera-tensorrt-report.tar.gz"
exit "$status"
