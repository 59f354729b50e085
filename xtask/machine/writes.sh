# Writes until the power is cut. What is told here is acknowledged; the next start looks for it.
comes "the unit has started by itself" 300 wharf status
does "a change" kubectl annotate configmap settings written=yes
does "an object that goes" kubectl delete pod once
does "an image that is there when it was said to be" wharf image load /machine/images/hellok8s-v1.tar
i=0
while [ $i -lt 2000 ]; do
  i=$((i + 1))
  echo "---
apiVersion: v1
kind: ConfigMap
metadata: {name: written-$i}
data: {number: \"$i\"}"
done > /tmp/writes.yaml
does "pods that are being made meanwhile" kubectl scale deployment web --replicas=8
kubectl create -f /tmp/writes.yaml
no "the power" "it was not cut"
