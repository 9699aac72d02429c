package cp

import (
	"net/http"
	"reflect"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-json-experiment/json"

	"nixfleet/roles/protocol"
)

const openAPIPath = "/v1/openapi.json"

// described returns the routes with one more, which serves their OpenAPI 3.1
// document (https://spec.openapis.org/oas/v3.1.1) to operators.
func described(routes []route, version string) ([]route, error) {
	var doc []byte
	routes = append(routes, route{
		"GET " + openAPIPath, operators, func(*call) (any, error) { return rawJSON(doc), nil },
		about{"read this document", nil, signedJSON, ""},
	})
	s := schemas{}
	paths := map[string]map[string]any{}
	for i := range routes {
		rt := &routes[i]
		if paths[rt.path()] == nil {
			paths[rt.path()] = map[string]any{}
		}
		paths[rt.path()][strings.ToLower(rt.method())] = s.operation(rt)
	}
	var err error
	doc, err = json.Marshal(map[string]any{
		"openapi": "3.1.0",
		"info":    map[string]any{"title": "nixfleet control plane", "version": version},
		"paths":   paths,
		"components": map[string]any{
			"schemas": s,
			"securitySchemes": map[string]any{
				"certificate": map[string]any{"type": "mutualTLS"},
				"webhook":     map[string]any{"type": "http", "scheme": "bearer"},
			},
		},
	}, json.Deterministic(true))
	return routes, err
}

// rawJSON is a reply that is JSON already.
type rawJSON []byte

func (doc rawJSON) write(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	w.Write(doc)
}

// may says who may call, in words and as a security requirement.
var may = map[callers]struct {
	words  string
	scheme string // empty for none
}{
	everybody: {"Everybody may call.", ""},
	tokens:    {"The token in the body opens it.", ""},
	forges:    {"The webhook's token opens it: as a bearer, in X-Gitlab-Token, or by a signature of the body.", "webhook"},
	hosts:     {"The host that the body names may call.", "certificate"},
	members:   {"Hosts and operators may call; a host reads what is its own.", "certificate"},
	readers:   {"Operators may call, and hosts where --read-all-agents is given.", "certificate"},
	operators: {"Operators may call.", "certificate"},
}

var parameter = regexp.MustCompile(`\{(\w+)\}`)

// operation describes one route.
func (s schemas) operation(rt *route) map[string]any {
	op := map[string]any{
		"summary": rt.about.summary, "description": may[rt.who].words, "security": []any{},
		"responses": map[string]any{"default": s.refusal()},
	}
	if scheme := may[rt.who].scheme; scheme != "" {
		op["security"] = []any{map[string]any{scheme: []string{}}}
	}
	var parameters []any
	for _, name := range parameter.FindAllStringSubmatch(rt.path(), -1) {
		parameters = append(parameters, map[string]any{"name": name[1], "in": "path", "required": true, "schema": anyText})
	}
	for _, name := range strings.Fields(rt.about.query) {
		parameters = append(parameters, map[string]any{"name": name, "in": "query", "schema": anyText})
	}
	if parameters != nil {
		op["parameters"] = parameters
	}
	if rt.about.takes != nil {
		op["requestBody"] = map[string]any{"required": true, "content": s.content(rt.about.takes)}
	}
	status, answer := http.StatusOK, map[string]any{"description": "done"}
	switch gives := rt.about.gives.(type) {
	case nil:
		status = http.StatusNoContent
	case nothingBut:
		status = int(gives)
	default:
		answer["content"] = s.content(gives)
	}
	op["responses"].(map[string]any)[strconv.Itoa(status)] = answer
	return op
}

var anyText = map[string]any{"type": "string"}

// content is a body of one type.
func (s schemas) content(v any) map[string]any {
	if kind, ok := v.(media); ok {
		return map[string]any{string(kind): map[string]any{}}
	}
	return map[string]any{"application/json": map[string]any{"schema": s.of(reflect.TypeOf(v))}}
}

// refusal describes every answer that is not the expected one.
func (s schemas) refusal() map[string]any {
	content := s.content(protocol.Refusal{})
	content["text/plain"] = map[string]any{}
	return map[string]any{
		"description": "a refusal; most have a body only for callers that accept application/json",
		"content":     content,
	}
}
