package protocol

import (
	"net/http"
	"strings"
	"testing"

	"nixfleet/pki"
)

func TestDecodeStrict(t *testing.T) {
	good := string(example(t, "confirm"))
	with := func(old, new string) string {
		changed := strings.Replace(good, old, new, 1)
		if changed == good {
			t.Fatalf("nothing to replace: %s", old)
		}
		return changed
	}
	for _, c := range []struct {
		name, body string
		status     int
	}{
		{"as it is", good, 200},
		{"white space around", " \n" + good + "\n", 200},
		{"unknown member", with(`{"hostname"`, `{"x":{"y":null},"hostname"`), 200},
		{"unknown member twice", with(`{"hostname"`, `{"x":1,"x":2,"hostname"`), 200},
		{"unknown member twice, inside", with(`"bootId"`, `"x":1,"x":[2],"bootId"`), 200},
		{"unknown member with a huge number", with(`{"hostname"`, `{"x":18446744073709551615,"hostname"`), 200},
		{"unknown member with duplicates inside", with(`{"hostname"`, `{"x":{"y":1,"y":2},"hostname"`), 200},
		{"unknown member twice and one missing", `{"x":1,"x":2,"hostname":"h"}`, 422},
		{"unknown and known member twice", with(`{"hostname"`, `{"x":1,"x":2,"hostname":"db-01","hostname"`), 422},
		{"other case is unknown", with(`{"hostname"`, `{"HOSTNAME":"a","Hostname":"b","hostname"`), 200},
		{"known member twice", with(`{"hostname"`, `{"hostname":"db-01","hostname"`), 422},
		{"known member twice by escapes", with(`{"hostname"`, `{"host\u006eame":"db-01","hostname"`), 422},
		{"known member twice, inside", with(`"bootId"`, `"closureHash":"x","bootId"`), 422},
		{"missing member", with(`"hostname":"db-01",`, ``), 422},
		{"null for a required member", with(`"hostname":"db-01"`, `"hostname":null`), 422},
		{"only in another case", with(`"hostname"`, `"Hostname"`), 422},
		{"text for a number", with(`"wave":1`, `"wave":"1"`), 422},
		{"5.0 is not an integer here", with(`"wave":1`, `"wave":5.0`), 422},
		{"5e0 is not an integer here", with(`"wave":1`, `"wave":5e0`), 422},
		{"negative number", with(`"wave":1`, `"wave":-1`), 422},
		{"33 bits", with(`"wave":1`, `"wave":4294967296`), 422},
		{"huge number", with(`"wave":1`, `"wave":99999999999999999999`), 422},
		{"null", `null`, 422},
		{"list", `[]`, 422},
		{"text", `"x"`, 422},
		{"empty object", `{}`, 422},
		{"nothing", ``, 400},
		{"white space alone", ` `, 400},
		{"truncated", good[:len(good)/2], 400},
		{"truncated after a repeated member", `{"hostname":"a","hostname":"b"`, 400},
		{"two documents", good + good, 400},
		{"comma at the end", with(`}}`, `},}`), 400},
		{"byte order mark", "\ufeff" + good, 400},
		{"invalid UTF-8", with(`"db-01"`, "\"db-\xff\""), 400},
		{"lone surrogate", with(`"db-01"`, `"\ud800"`), 400},
		{"nested too deep", with(`{"hostname"`, `{"x":`+strings.Repeat("[", 200)+strings.Repeat("]", 200)+`,"hostname"`),
			400},
		{"NaN", with(`"wave":1`, `"wave":NaN`), 400},
	} {
		var r ConfirmRequest
		status, err := DecodeStrict([]byte(c.body), &r)
		if status != c.status || (err == nil) != (c.status == http.StatusOK) {
			t.Errorf("%s: %d, %v; want %d", c.name, status, err, c.status)
		}
		if err == nil && (r.Hostname != "db-01" || r.Wave != 1 || r.Generation.BootID == "") {
			t.Errorf("%s: read as %+v", c.name, r)
		}
	}
	if status, _ := DecodeStrict(make([]byte, pki.MaxDocument+1),
		new(ConfirmRequest)); status != http.StatusRequestEntityTooLarge {
		t.Errorf("too large: %d", status)
	}
}

func TestDecodeStrictInLists(t *testing.T) {
	doc := string(example(t, "checkin"))
	for old, c := range map[string]struct {
		new    string
		status int
	}{
		`{"name":"site"`:         {`{"x":1,"x":1,"name":"site"`, 200},
		`"kind":"http"`:          {`"kind":"http","kind":"tcp"`, 422},
		`"healthProbes":[`:       {`"healthProbes":[null,`, 422},
		`"status":"pass"`:        {`"status":null`, 422},
		`"uptimeSecs":4211`:      {`"uptimeSecs":-1`, 422},
		`"2026-03-01T12:21:00Z"`: {`"2026-03-01T12:21:00"`, 422},
		// Words are those of the contract, in its case.
		`"http"`:     {`"unit"`, 422},
		`"kind":"h`:  {`"kind":"H`, 422},
		`"pass"`:     {`"passed"`, 422},
		`"enforce"`:  {`"auto"`, 422},
		`"uptimeSe`:  {`"lastFetchOutcome":{"result":"OK"},"uptimeSe`, 422},
		`,"uptimeSe`: {`,"lastFetchOutcome":{"result":"fetch-failed"},"uptimeSe`, 200},
	} {
		changed := strings.Replace(doc, old, c.new, 1)
		if status, err := DecodeStrict([]byte(changed), new(CheckinRequest)); status != c.status {
			t.Errorf("%s: %d, %v; want %d", c.new, status, err, c.status)
		}
	}
}

// TestAnswersOfOthers: what a control plane adds that we do not know is ignored,
// and a v1 one hands on the numbers of its hosts.
func TestAnswersOfOthers(t *testing.T) {
	for _, c := range []struct {
		answer string
		good   bool
	}{
		{`{"reports":[],"new":18446744073709551615}`, true},
		{`{"new":{"a":1,"a":2},"reports":[],"new":1}`, true},
		{
			`{"reports":[{"hostname":"a","eventId":"e","receivedAt":"2026-03-01T12:00:00+00:00","eventKind":"other","event":"other","details":{"kind":"k","detail":1772368000123456789}}]}`, true},
		{`{"reports":[],"reports":[]}`, false},
		{`{"new":1,"new":2}`, false},
	} {
		if err := DecodeKnown([]byte(c.answer), new(HostReportsResponse)); (err == nil) != c.good {
			t.Errorf("%s: %v", c.answer, err)
		}
	}
}

func FuzzDecodeStrict(f *testing.F) {
	for _, name := range []string{"checkin", "confirm", "report", "hosts", "checkin-answer"} {
		f.Add(example(f, name))
	}
	f.Add([]byte(`{"x":1,"x":2,"hostname":"h","healthProbes":[{"name":1e999}]}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		for _, v := range []any{new(CheckinRequest), new(ConfirmRequest), new(ReportRequest), new(EnrollRequest),
			new(BootstrapReport)} {
			status, err := DecodeStrict(body, v)
			switch status {
			case http.StatusOK:
				doc, err := pki.Marshal(v)
				if err != nil {
					t.Fatalf("accepted and cannot be written: %v", err)
				}
				if status, err := DecodeStrict(doc, v); err != nil {
					t.Fatalf("written and cannot be read: %d, %v\n%s", status, err, doc)
				}
			case http.StatusBadRequest, http.StatusUnprocessableEntity:
				if err == nil {
					t.Fatalf("%d without a reason", status)
				}
			default:
				t.Fatalf("answer %d: %v", status, err)
			}
		}
	})
}
