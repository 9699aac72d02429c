package cp

import (
	"bytes"
	"maps"
	"mime"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/go-json-experiment/json"
	"github.com/santhosh-tekuri/jsonschema/v6"
)

// apiDocument is the OpenAPI document that a control plane serves, as far as answers
// are held to it.
type apiDocument struct {
	OpenAPI string                             `json:"openapi"`
	Paths   map[string]map[string]apiOperation `json:"paths"`

	compiler *jsonschema.Compiler
	schemas  map[string]*jsonschema.Schema // by their place in the document
	answered map[string]bool               // "METHOD path" that were answered as expected
}

type apiOperation struct {
	Summary     string                 `json:"summary"`
	Description string                 `json:"description"`
	RequestBody *apiBody               `json:"requestBody"`
	Responses   map[string]apiResponse `json:"responses"`
}

type apiBody struct {
	Content map[string]any `json:"content"`
}

type apiResponse struct {
	Description string         `json:"description"`
	Content     map[string]any `json:"content"`
}

// documented reads the document of p.
func (p *plane) documented(c *http.Client) *apiDocument {
	p.t.Helper()
	got := p.send(c, sent{method: "GET", path: openAPIPath})
	if got.status != http.StatusOK {
		p.t.Fatal(got)
	}
	d := &apiDocument{compiler: jsonschema.NewCompiler(), schemas: map[string]*jsonschema.Schema{},
		answered: map[string]bool{}}
	if err := json.Unmarshal([]byte(got.body), d); err != nil {
		p.t.Fatal(err)
	}
	doc, err := jsonschema.UnmarshalJSON(strings.NewReader(got.body))
	if err != nil {
		p.t.Fatal(err)
	}
	if err := d.compiler.AddResource("openapi.json", doc); err != nil {
		p.t.Fatal(err)
	}
	d.compiler.AssertFormat()
	return d
}

// valid holds a JSON body to the schema at a place of the document.
func (d *apiDocument) valid(t testing.TB, what string, place []string, body []byte) {
	t.Helper()
	for i, word := range place {
		place[i] = strings.NewReplacer("~", "~0", "/", "~1", "{", "%7B", "}", "%7D").Replace(word)
	}
	at := "openapi.json#/" + strings.Join(place, "/")
	if d.schemas[at] == nil {
		compiled, err := d.compiler.Compile(at)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		d.schemas[at] = compiled
	}
	v, err := jsonschema.UnmarshalJSON(bytes.NewReader(body))
	if err != nil {
		t.Errorf("%s: %v", what, err)
		return
	}
	if err := d.schemas[at].Validate(v); err != nil {
		t.Errorf("%s: %v\n%s", what, err, body)
	}
}

// holds compares an answer with what the document says of it.
func (d *apiDocument) holds(t testing.TB, q question, a answer) {
	t.Helper()
	what := q.method + " " + q.path + " answered " + strconv.Itoa(a.status)
	method := strings.ToLower(q.method)
	op, ok := d.Paths[q.pattern][method]
	if !ok {
		if a.status < 400 {
			t.Errorf("%s, and is not in the document", what)
		}
		return
	}
	status := strconv.Itoa(a.status)
	response, expected := op.Responses[status]
	if expected {
		d.answered[q.method+" "+q.pattern] = true
	} else {
		if a.status < 400 {
			t.Errorf("%s, which the document does not have", what)
		}
		status, response = "default", op.Responses["default"]
	}
	if a.body == "" {
		if expected && len(response.Content) > 0 {
			t.Errorf("%s without a body", what)
		}
		return
	}
	kind, _, err := mime.ParseMediaType(a.header.Get("Content-Type"))
	content, listed := response.Content[kind].(map[string]any)
	if err != nil || !listed {
		t.Errorf("%s with a body of type %q", what, a.header.Get("Content-Type"))
		return
	}
	if content["schema"] != nil {
		d.valid(t, what, []string{"paths", q.pattern, method, "responses", status, "content", kind, "schema"}, []byte(a.body))
	}
}

// TestTheDocumentIsThatOfTheTable: every route stands in the document, with words
// for its callers, and nothing else does.
func TestTheDocumentIsThatOfTheTable(t *testing.T) {
	e := newEstate(t, "a")
	p := e.serve()
	d := p.documented(p.web(e.operatorCert("operator-jo")))
	if d.OpenAPI != "3.1.0" {
		t.Errorf("it is OpenAPI %s", d.OpenAPI)
	}
	d.valid(t, "/healthz before the first tick",
		[]string{"paths", "/healthz", "get", "responses", "200", "content", "application/json", "schema"},
		[]byte(`{"ok":true,"version":"0.0.1","last_tick_at":null}`))
	routes, err := described((&handlers{acts: &acts{}}).table(newRegistry()), "")
	if err != nil {
		t.Fatal(err)
	}
	var want, got []string
	for _, rt := range routes {
		want = append(want, rt.pattern)
		op := d.Paths[rt.path()][strings.ToLower(rt.method())]
		if op.Summary == "" || op.Description == "" || op.Responses["default"].Description == "" {
			t.Errorf("%s is described as %+v", rt.pattern, op)
		}
		if takes := op.RequestBody != nil; takes != (rt.about.takes != nil) {
			t.Errorf("%s takes a body: %v", rt.pattern, takes)
		}
	}
	for path, methods := range d.Paths {
		for method := range maps.Keys(methods) {
			got = append(got, strings.ToUpper(method)+" "+path)
		}
	}
	slices.Sort(want)
	slices.Sort(got)
	if !slices.Equal(got, want) {
		t.Errorf("the document has %v, the table %v", got, want)
	}
}
