package cp

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds every wait for the browser.
const patience = 30 * time.Second

// chromium is a headless Chromium, spoken to by its DevTools protocol over a pipe
// (https://chromedevtools.github.io/devtools-protocol/).
type chromium struct {
	t   *testing.T
	out *os.File

	mu      sync.Mutex
	last    int
	answers map[int]chan message
	noise   []string // what pages said on their consoles, and what they could not load
}

type message struct {
	ID        int             `json:"id"`
	Method    string          `json:"method"`
	SessionID string          `json:"sessionId"`
	Params    json.RawMessage `json:"params"`
	Result    json.RawMessage `json:"result"`
	Error     *struct {
		Message string `json:"message"`
	} `json:"error"`
}

// startChromium runs the Chromium that NIXFLEET_TEST_BROWSER names, or skips the test.
func startChromium(t *testing.T) *chromium {
	t.Helper()
	program := os.Getenv("NIXFLEET_TEST_BROWSER")
	if program == "" {
		t.Skip("skipped: NIXFLEET_TEST_BROWSER names no Chromium; .ci/run packages browser installs one and runs this")
	}
	home, err := os.MkdirTemp("", "nixfleet-chromium-")
	if err != nil {
		t.Fatal(err)
	}
	theirs, ours, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	read, wrote, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	process := exec.CommandContext(ctx, program, "--headless=new", "--no-sandbox", "--disable-gpu",
		"--disable-dev-shm-usage",
		"--no-first-run", "--disable-extensions", "--disable-background-networking", "--disable-component-update",
		"--hide-scrollbars", "--lang=en", "--user-data-dir="+home, "--remote-debugging-pipe", "about:blank")
	process.ExtraFiles = []*os.File{theirs, wrote}
	process.Env = append(os.Environ(), "HOME="+home)
	process.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	process.WaitDelay = 10 * time.Second
	if err := process.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	wrote.Close()
	c := &chromium{t: t, out: ours, answers: map[int]chan message{}}
	done := make(chan struct{})
	go func() {
		defer close(done)
		c.listen(bufio.NewReaderSize(read, 1<<20))
	}()
	t.Cleanup(func() {
		// Its helpers as well, which write into its directory.
		_ = syscall.Kill(-process.Process.Pid, syscall.SIGKILL)
		cancel()
		_ = process.Wait() // it was killed
		ours.Close()
		<-done
		read.Close()
		for end := time.Now().Add(patience); os.RemoveAll(home) != nil && time.Now().Before(end); {
			time.Sleep(50 * time.Millisecond)
		}
	})
	return c
}

// listen takes messages until the pipe ends.
func (c *chromium) listen(pipe *bufio.Reader) {
	for {
		doc, err := pipe.ReadBytes(0)
		if err != nil {
			return
		}
		var m message
		if json.Unmarshal(doc[:len(doc)-1], &m) != nil {
			continue
		}
		c.mu.Lock()
		if answer := c.answers[m.ID]; answer != nil {
			delete(c.answers, m.ID)
			answer <- m
		}
		switch m.Method {
		case "Runtime.exceptionThrown", "Log.entryAdded", "Network.loadingFailed":
			c.noise = append(c.noise, m.Method+" "+string(m.Params))
		case "Runtime.consoleAPICalled":
			c.noise = append(c.noise, string(m.Params))
		}
		c.mu.Unlock()
	}
}

// call asks the browser, or a tab of it, and decodes the result into out.
func (c *chromium) call(session, method string, params map[string]any, out any) {
	c.t.Helper()
	if err := c.ask(session, method, params, out); err != nil {
		c.t.Fatal(err)
	}
}

// ask is call with what the browser says against it as an error.
func (c *chromium) ask(session, method string, params map[string]any, out any) error {
	c.t.Helper()
	answer := make(chan message, 1)
	c.mu.Lock()
	c.last++
	id := c.last
	c.answers[id] = answer
	c.mu.Unlock()
	doc, err := json.Marshal(map[string]any{"id": id, "method": method, "params": params, "sessionId": session})
	if session == "" {
		doc, err = json.Marshal(map[string]any{"id": id, "method": method, "params": params})
	}
	if err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.out.Write(append(doc, 0)); err != nil {
		c.t.Fatal(err)
	}
	select {
	case m := <-answer:
		if m.Error != nil {
			return fmt.Errorf("%s: %s", method, m.Error.Message)
		}
		if out != nil {
			if err := json.Unmarshal(m.Result, out); err != nil {
				c.t.Fatalf("%s: %v", method, err)
			}
		}
	case <-time.After(patience):
		c.t.Fatalf("%s: the browser does not answer", method)
	}
	return nil
}

// tab is one tab.
type tab struct {
	*chromium
	session string
}

// open makes a tab of its own width, light or dark.
func (c *chromium) open(width, height int, scheme string) *tab {
	c.t.Helper()
	var target struct{ TargetID string }
	c.call("", "Target.createTarget", map[string]any{"url": "about:blank"}, &target)
	var attached struct{ SessionID string }
	c.call("", "Target.attachToTarget", map[string]any{"targetId": target.TargetID, "flatten": true}, &attached)
	b := &tab{c, attached.SessionID}
	for _, domain := range []string{"Page", "Runtime", "Log", "Network"} {
		b.do(domain+".enable", nil)
	}
	b.do("Emulation.setDeviceMetricsOverride", map[string]any{
		"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})
	b.do("Emulation.setEmulatedMedia", map[string]any{
		"features": []map[string]string{{"name": "prefers-color-scheme", "value": scheme}}})
	return b
}

func (b *tab) do(method string, params map[string]any) {
	b.t.Helper()
	b.call(b.session, method, params, nil)
}

// eval is the value of an expression in the tab.
func (b *tab) eval(expression string) any {
	b.t.Helper()
	value, err := b.tryEval(expression)
	if err != nil {
		b.t.Fatalf("%.200s: %v", expression, err)
	}
	return value
}

// tryEval is eval on a page that may be between two documents.
func (b *tab) tryEval(expression string) (any, error) {
	b.t.Helper()
	var answer struct {
		Result struct {
			Value any
		}
		ExceptionDetails *struct {
			Text      string
			Exception struct{ Description string }
		}
	}
	err := b.ask(b.session, "Runtime.evaluate",
		map[string]any{"expression": expression, "returnByValue": true, "awaitPromise": true}, &answer)
	if x := answer.ExceptionDetails; err == nil && x != nil {
		err = fmt.Errorf("%s %s", x.Text, x.Exception.Description)
	}
	return answer.Result.Value, err
}

func (b *tab) text() string {
	b.t.Helper()
	text, _ := b.eval("document.body ? document.body.innerText : ''").(string)
	return text
}

// visit opens a page and waits until it is there.
func (b *tab) visit(place string) {
	b.t.Helper()
	b.do("Page.navigate", map[string]any{"url": place})
	b.until("loaded "+place, "document.readyState === 'complete' && !!document.querySelector('main')")
}

// until waits for an expression to be true.
func (b *tab) until(what, expression string) {
	b.t.Helper()
	for end := time.Now().Add(patience); ; time.Sleep(50 * time.Millisecond) {
		value, err := b.tryEval(expression)
		if yes, _ := value.(bool); yes && err == nil {
			return
		}
		if time.Now().After(end) {
			b.t.Fatalf("not %s (%v): the tab shows\n%s", what, err, b.text())
		}
	}
}

// shows waits for words on the page.
func (b *tab) shows(words string) {
	b.t.Helper()
	quoted, _ := json.Marshal(words)
	b.until("showing "+words, "document.body.innerText.includes("+string(quoted)+")")
}

// picture keeps a screenshot where NIXFLEET_TEST_PICTURES names a directory.
func (b *tab) picture(name string) {
	b.t.Helper()
	dir := os.Getenv("NIXFLEET_TEST_PICTURES")
	if dir == "" {
		return
	}
	var shot struct{ Data string }
	b.call(b.session, "Page.captureScreenshot", map[string]any{"format": "png", "captureBeyondViewport": true}, &shot)
	data, err := base64.StdEncoding.DecodeString(shot.Data)
	if err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, name+".png"), data, 0o644); err != nil {
		b.t.Fatal(err)
	}
}

// quiet fails the test when a page has said something on its console, or could not load a part.
func (c *chromium) quiet(but ...string) {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
noises:
	for _, noise := range c.noise {
		for _, expected := range but {
			if strings.Contains(noise, expected) {
				continue noises
			}
		}
		c.t.Errorf("a page says: %.500s", noise)
	}
}
