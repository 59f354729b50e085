#!/bin/sh
# Runs inside of the machine, as the user of a fresh Linux with cgroup v2 and systemd would: the
# scenario that this start was told. Prints `ok NAME` or `FAILED NAME: …` per check; the last line
# counts them, and then the machine is shut down as people do it.
. /machine/checks.sh
scenario=$(word scenario)
echo "scenario $scenario"
. "/machine/$scenario.sh"
if [ $failed != 0 ]; then
  tail -n 40 /var/log/wharf.log
  kubectl get pods,events -A | tail -n 40
fi
echo "passed $passed failed $failed"
systemctl --no-block poweroff 2>/dev/null # it has no logind, and says so
