# What every scenario checks with, and what it looks at.
passed=0 failed=0
ok() { passed=$((passed + 1)); echo "ok $1 ($(cut -d. -f1 /proc/uptime) s)"; }
no() { failed=$((failed + 1)); echo "FAILED $1: $2"; }
is() { if [ "$2" = "$3" ]; then ok "$1"; else no "$1" "expected '$3', found '$2'"; fi; }
does() { # NAME COMMAND…: it succeeds
  name=$1; shift
  if output=$("$@" 2>&1); then ok "$name"; else no "$name" "$* ended with $?: $output"; fi
}
comes() { # NAME SECONDS COMMAND…: it succeeds within so many seconds
  name=$1 end=$(($(date +%s) + $2)); shift 2
  until output=$("$@" 2>&1); do
    if [ "$(date +%s)" -ge $end ]; then no "$name" "$*: $output"; return 1; fi
    sleep 1
  done
  ok "$name"
}
keepers() { grep -lx keeper /proc/[0-9]*/comm 2>/dev/null; }
in_pods() { find /sys/fs/cgroup/wharf/pods -name cgroup.procs -exec cat {} + | sort -n; }
links() { ls /sys/class/net | grep -vxE 'lo|eth0'; }
left() { # what an instance must not leave behind
  keepers
  find /sys/fs/cgroup -maxdepth 1 -name 'wharf*'
  grep -E 'wharf|overlay' /proc/self/mounts
  links
  nft list tables
  ip route | grep -v eth0
}
gone() { [ -z "$(left)" ]; }
word() { sed -n "s/.*\<$1=\([^ ]*\).*/\1/p" /proc/cmdline; } # what this start was told
template() { kubectl get "$1" -o "go-template=$2"; }
inside() { kubectl exec client -c main -- "$@"; }
# Whether the web answers there, with the name of one of its pods. (This busybox's own wget crashes.)
get() { echo "printf 'GET / HTTP/1.0\r\n\r\n' | nc -w 30 $1 $2"; }
is_web() { answer=$(tail -n 1) && echo "answer: $answer" && kubectl get pods -l app=web -o name | grep -qx "pod/$answer"; }
from_pod() { inside sh -c "$(get "$@")" | is_web; }
from_machine() { sh -c "$(get "$@")" | is_web; }
