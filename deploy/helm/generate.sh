#!/usr/bin/env bash
# Makes the chart's templates from deploy/kubernetes/base, so that both install the same objects. Needs kubectl.
set -euo pipefail
cd "$(dirname "$0")/slimfaas"
kubectl kustomize ../../kubernetes/base |
  sed -E \
    -e 's#image: slimfaas/(edge|queue|scaler):dev#image: "{{ .Values.registry }}/\1:{{ .Values.tag | default .Chart.AppVersion }}"#' \
    -e 's#^  name: slimfaas-certs-dev#  name: slimfaas-certs-{{ .Values.tag | default .Chart.AppVersion }}#' \
    -e '/^- kind: ServiceAccount$/{n;s#$#\n  namespace: {{ .Release.Namespace }}#}' |
  awk '
    # One file: objects as kustomize orders them. What values change is replaced by kind and name.
    /^---$/ || NR == 1 { kind = ""; name = "" }
    /^kind: /  { kind = $2 }
    /^  name: / && name == "" { name = $2 }
    /^  replicas: / && kind == "Deployment" && name == "slimfaas-edge"   { print "  {{- if not .Values.edge.autoscaled }}\n  replicas: {{ .Values.edge.replicas }}\n  {{- end }}"; next }
    /^  replicas: / && kind == "Deployment" && name == "slimfaas-scaler" { print "  replicas: {{ .Values.scaler.replicas }}"; next }
    /^          storage: / && kind == "StatefulSet" { print "          storage: {{ .Values.queue.storage }}"; next }
    /^        - name: EDGE_NAME$/   { print "        {{- with .Values.edge.env }}\n        {{- toYaml . | nindent 8 }}\n        {{- end }}" }
    /^        - name: QUEUE_NAME$/  { print "        {{- with .Values.queue.env }}\n        {{- toYaml . | nindent 8 }}\n        {{- end }}" }
    /^        - name: SCALER_ORCHESTRATOR$/ { print "        {{- with .Values.scaler.env }}\n        {{- toYaml . | nindent 8 }}\n        {{- end }}" }
    { print }
  ' > templates/slimfaas.yaml
