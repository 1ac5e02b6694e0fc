{{/* What fleet.yaml would hold. */}}
{{- define "tessera.args" -}}
{{- $args := dict "bundle" .Values.bundle "host" "0.0.0.0" "templates" "/var/tessera/templates" -}}
{{- if .Values.autoscaling -}}
{{- $_ := required "autoscaling needs templatesClaim: a worker that is stopped would take its templates along" .Values.templatesClaim -}}
{{- $_ := set $args "autoscaling" .Values.autoscaling -}}
{{- else -}}
{{- $_ := set $args "replicas" .Values.replicas -}}
{{- end -}}
{{- if .Values.templatesClaim -}}{{- $_ := set $args "shared_templates" true -}}{{- end -}}
{{- if .Values.gpu -}}{{- $_ := set $args "gpus" 1 -}}{{- end -}}
{{- if .Values.keysSecret -}}{{- $_ := set $args "keys" "/etc/tessera/keys.toml" -}}{{- end -}}
{{- $serve := .Values.serve -}}
{{- if kindIs "map" .Values.metricsNamespaces -}}{{- $serve = concat (list "--metrics-port" "8002") (default list $serve) -}}{{- end -}}
{{- if $serve -}}{{- $_ := set $args "serve" $serve -}}{{- end -}}
{{- if .Values.weights -}}{{- $_ := set $args "weights" .Values.weights -}}{{- end -}}
{{- toYaml $args -}}
{{- end -}}

{{/* Of the pod of the head and of a worker: (dict "root" $ "name" ... "of" ... "shm" ... "worker" bool). */}}
{{- define "tessera.pod" -}}
metadata:
  labels:
    app: {{ .root.Release.Name }}-ray
spec:
  automountServiceAccountToken: false
  terminationGracePeriodSeconds: 60
  securityContext: {runAsNonRoot: true, runAsUser: 1000, runAsGroup: 1000, fsGroup: 1000}
  {{- with .root.Values.imagePullSecrets }}
  imagePullSecrets: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .of.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .of.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  containers:
    - name: {{ .name }}
      image: {{ .root.Values.image | quote }}
      {{- with .root.Values.imagePullPolicy }}
      imagePullPolicy: {{ . }}
      {{- end }}
      {{- if not .worker }}
      ports:
        - {name: http, containerPort: 8000}
        - {name: grpc, containerPort: 8001}
        - {name: serve, containerPort: 8100}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
      {{- else if kindIs "map" .root.Values.metricsNamespaces }}
      ports:
        - {name: tessera-metrics, containerPort: 8002}  # KubeRay names Ray's own metrics
      {{- end }}
      securityContext:
        allowPrivilegeEscalation: false
        readOnlyRootFilesystem: true
        capabilities: {drop: [ALL]}
      livenessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        timeoutSeconds: 5
        failureThreshold: 24
      readinessProbe:
        httpGet: {path: /api/healthz, port: 52365}
        timeoutSeconds: 5
      resources:
        {{- $resources := deepCopy (default dict .of.resources) }}
        {{- if and .worker .root.Values.gpu }}
        {{- $_ := set $resources "limits" (set (default dict $resources.limits) "nvidia.com/gpu" "1") }}
        {{- end }}
        {{- toYaml $resources | nindent 8 }}
      volumeMounts:
        - {name: home, mountPath: /var/tessera}
        - {name: tmp, mountPath: /tmp}
        - {name: shm, mountPath: /dev/shm}
        {{- if and .worker .root.Values.templatesClaim }}
        - {name: templates, mountPath: /var/tessera/templates}
        {{- end }}
        {{- if and .worker .root.Values.bundleClaim }}
        - {name: bundles, mountPath: /bundles, readOnly: true}
        {{- end }}
        {{- if and (not .worker) .root.Values.keysSecret }}
        - {name: keys, mountPath: /etc/tessera, readOnly: true}
        {{- end }}
  volumes:
    - {name: home, emptyDir: {}}
    - {name: tmp, emptyDir: {}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ .shm }}}}
    {{- if and .worker .root.Values.templatesClaim }}
    - {name: templates, persistentVolumeClaim: {claimName: {{ .root.Values.templatesClaim }}}}
    {{- end }}
    {{- if and .worker .root.Values.bundleClaim }}
    - {name: bundles, persistentVolumeClaim: {claimName: {{ .root.Values.bundleClaim }}, readOnly: true}}
    {{- end }}
    {{- if and (not .worker) .root.Values.keysSecret }}
    - {name: keys, secret: {secretName: {{ .root.Values.keysSecret }}}}
    {{- end }}
{{- end -}}
