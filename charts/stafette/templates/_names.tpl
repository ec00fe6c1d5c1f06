{{/* Names and labels. Pods carry no chart version: a new one would replace the cluster. */}}

{{- define "stafette.fullname" -}}
{{- $name := .Values.nameOverride | default .Chart.Name -}}
{{- $full := .Values.fullnameOverride | default (contains $name .Release.Name | ternary .Release.Name (printf "%s-%s" .Release.Name $name)) -}}
{{- /* KubeRay adds to the name, and wants 47 characters at most before that. */ -}}
{{- $full = $full | trunc 40 | trimSuffix "-" -}}
{{- if not (regexMatch "^[a-z]([-a-z0-9]*[a-z0-9])?$" $full) -}}
{{- fail (printf "the name %q must begin with a letter and hold a-z, 0-9 and - only: set fullnameOverride" $full) -}}
{{- end -}}
{{- $full -}}
{{- end -}}

{{- define "stafette.selector" -}}
app.kubernetes.io/name: {{ .Values.nameOverride | default .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "stafette.labels" -}}
{{ include "stafette.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- with .Values.labels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{- define "stafette.image" -}}
{{- with .Values.image -}}
{{- empty .digest | not | ternary (printf "%s@%s" .repository .digest) (printf "%s:%s" .repository (.tag | default $.Chart.AppVersion)) -}}
{{- end -}}
{{- end -}}

{{- define "stafette.serviceAccount" -}}
{{- .Values.serviceAccount.create | ternary (.Values.serviceAccount.name | default (include "stafette.fullname" .)) (.Values.serviceAccount.name | default "default") -}}
{{- end -}}

{{- define "stafette.clusterSecret" -}}
{{- .Values.secrets.cluster.existingSecret | default (printf "%s-cluster" (include "stafette.fullname" .)) -}}
{{- end -}}

{{- define "stafette.apiKeysSecret" -}}
{{- .Values.secrets.apiKeys.existingSecret | default (printf "%s-api-keys" (include "stafette.fullname" .)) -}}
{{- end -}}

{{/* The URL in the cluster. */}}
{{- define "stafette.url" -}}
{{- $scheme := .Values.config.frontend.tls_certfile | empty | not | ternary "https" "http" -}}
{{- printf "%s://%s.%s.svc:%d" $scheme (include "stafette.fullname" .) .Release.Namespace (int .Values.service.port) -}}
{{- end -}}
