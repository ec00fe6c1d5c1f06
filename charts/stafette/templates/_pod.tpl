{{/* Pods of the Ray cluster. A change here, or of the values it reads, replaces the cluster. */}}

{{/* Takes root, spec (the head or a group), component, container, serves (the API), gpus. */}}
{{- define "stafette.pod" -}}
{{- $root := .root -}}{{- $spec := .spec -}}
{{- $mounts := $spec.volumeMounts | default list -}}
{{- $volumes := $spec.volumes | default list -}}
{{- if ne .component "head" -}}
{{- with include "stafette.modelSource" $root | fromJson -}}
{{- $mounts = prepend $mounts (dict "name" "models" "mountPath" $root.Values.modelVolume.mountPath "readOnly" true) -}}
{{- $volumes = prepend $volumes (merge (dict "name" "models") .) -}}
{{- end -}}
{{- end -}}
metadata:
  labels:
    {{- include "stafette.selector" $root | nindent 4 }}
    app.kubernetes.io/component: {{ .component }}
    {{- with $root.Values.labels }}
    {{- toYaml . | nindent 4 }}
    {{- end }}
  {{- with $spec.annotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ include "stafette.serviceAccount" $root | quote }}
  automountServiceAccountToken: {{ and (eq .component "head") $root.Values.autoscaler.enabled }}
  terminationGracePeriodSeconds: {{ $spec.terminationGracePeriodSeconds | default 60 | int }}
  securityContext:
    {{- toYaml $root.Values.podSecurityContext | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . | quote }}
    {{- end }}
  {{- end }}
  {{- with include "stafette.nodeSelector" $spec | fromJson }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with include "stafette.tolerations" $spec | fromJsonArray }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- range $field := list "affinity" "topologySpreadConstraints" "priorityClassName" "runtimeClassName" "hostNetwork" "hostIPC" }}
  {{- with get $spec $field }}
  {{- toYaml (dict $field .) | nindent 2 }}
  {{- end }}
  {{- end }}
  containers:
    - name: {{ .container }}
      image: {{ include "stafette.image" $root | quote }}
      imagePullPolicy: {{ $root.Values.image.pullPolicy }}
      securityContext:
        {{- toYaml ($spec.securityContext | default $root.Values.securityContext) | nindent 8 }}
      env:
        {{- include "stafette.env" . | nindent 8 }}
      ports:
        {{- include "stafette.ports" . | nindent 8 }}
      {{- include "stafette.probes" . | nindent 6 }}
      {{- if .serves }}
      lifecycle:  # until nobody sends here any more
        preStop: {exec: {command: [sleep, "10"]}}
      {{- end }}
      resources:
        {{- include "stafette.resources" $spec | nindent 8 }}
      {{- with $mounts }}
      volumeMounts:
        {{- toYaml . | nindent 8 }}
      {{- end }}
  {{- with $volumes }}
  volumes:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}

{{- define "stafette.modelSource" -}}
{{- with .Values.modelVolume -}}
{{- if .claimName -}}
{{- toJson (dict "persistentVolumeClaim" (dict "claimName" .claimName "readOnly" true)) -}}
{{- else if .hostPath -}}
{{- toJson (dict "hostPath" (dict "path" .hostPath "type" "Directory")) -}}
{{- else if .image -}}
{{- toJson (dict "image" (dict "reference" .image "pullPolicy" "IfNotPresent")) -}}
{{- else -}}
{}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "stafette.nodeSelector" -}}
{{- $own := dict -}}
{{- with .gpu -}}
{{- if ne .type "any" -}}{{- $_ := set $own (.label | default "nvidia.com/gpu.product") .type -}}{{- end -}}
{{- end -}}
{{- toJson (merge (deepCopy (.nodeSelector | default dict)) $own) -}}
{{- end -}}

{{- define "stafette.tolerations" -}}
{{- $own := .tolerations | default list -}}
{{- with .gpu -}}
{{- $own = append $own (dict "key" (.resource | default "nvidia.com/gpu") "operator" "Exists" "effect" "NoSchedule") -}}
{{- end -}}
{{- toJson $own -}}
{{- end -}}

{{- define "stafette.resources" -}}
{{- $own := deepCopy .resources -}}
{{- with .gpu -}}
{{- $gpus := dict (.resource | default "nvidia.com/gpu") (int .count) -}}
{{- $_ := set $own "limits" (merge $gpus ($own.limits | default dict)) -}}
{{- $_ := set $own "requests" (merge $gpus ($own.requests | default dict)) -}}
{{- end -}}
{{- toYaml $own -}}
{{- end -}}

{{- define "stafette.fromSecret" -}}
- name: {{ .name }}
  valueFrom: {secretKeyRef: {name: {{ .secret | quote }}, key: {{ .key | quote }}}}
{{- end -}}

{{/* The application is built in any of the pods, with the token that workers prove to each other. */}}
{{- define "stafette.env" -}}
{{- $root := .root -}}{{- $secrets := $root.Values.secrets -}}
{{ include "stafette.fromSecret" (dict "name" "STAFETTE_TOKEN" "secret" (include "stafette.clusterSecret" $root) "key" "token") }}
{{- with $secrets.etcd.existingSecret }}
{{ include "stafette.fromSecret" (dict "name" "STAFETTE__DISCOVERY__ETCD__USER" "secret" . "key" "user") }}
{{ include "stafette.fromSecret" (dict "name" "STAFETTE__DISCOVERY__ETCD__PASSWORD" "secret" . "key" "password") }}
{{- end }}
{{- if and .serves $secrets.apiKeys.enabled }}
{{ include "stafette.fromSecret" (dict "name" "STAFETTE_API_KEYS" "secret" (include "stafette.apiKeysSecret" $root) "key" $secrets.apiKeys.key) }}
{{- end }}
{{- if not $root.Values.ray.auth }}
- {name: RAY_AUTH_MODE, value: disabled}  # Ray's default is a token, another one on each pod
{{- end }}
{{- with concat $root.Values.ray.env (.spec.env | default list) }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "stafette.ports" -}}
- {name: metrics, containerPort: 8080}  # Ray's
{{- if eq .component "head" }}
- {name: gcs-server, containerPort: 6379}
- {name: dashboard, containerPort: 8265}
- {name: client, containerPort: 10001}
- {name: serve, containerPort: 8000}  # KubeRay makes its own Service of it; nobody listens
{{- end }}
{{- if .serves }}
- {name: http, containerPort: {{ int .root.Values.config.frontend.port }}}
{{- end }}
{{- if and (ne .component "head") .root.Values.config.metrics.port }}
- {name: stafette, containerPort: {{ int .root.Values.config.metrics.port }}}
{{- end }}
{{- end -}}

{{/* KubeRay's own would ask for Serve's proxy on port 8000, which is not there. */}}
{{- define "stafette.probes" -}}
startupProbe:
  httpGet: {path: /api/healthz, port: 52365}
  periodSeconds: 5
  failureThreshold: 60
livenessProbe:
  httpGet: {path: /api/healthz, port: 52365}
  periodSeconds: 10
  timeoutSeconds: 5
  failureThreshold: 12
readinessProbe:
  {{- if .serves }}
  httpGet: {path: /ready, port: http, scheme: {{ empty .root.Values.config.frontend.tls_certfile | ternary "HTTP" "HTTPS" }}}
  periodSeconds: 2
  {{- else }}
  httpGet: {path: /api/healthz, port: 52365}
  periodSeconds: 5
  {{- end }}
  timeoutSeconds: 5
  failureThreshold: 3
{{- end -}}
