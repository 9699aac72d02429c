package operator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	stdlog "log"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"sync"
	"time"

	"github.com/urfave/cli/v2"

	"nixfleet/roles/command"
	"nixfleet/roles/protocol/client"
)

// Page makes the page for a browser on this machine, which asks plane. The page is served at
// address, to the browser that shows key at /enter first. Main hands it over, because the
// roles do not import each other.
type Page func(plane *client.Client, address, key string) http.Handler

func dashboardCommand(page Page) *cli.Command {
	return &cli.Command{
		Name: "dashboard", Usage: "see and steer the fleet in a browser",
		Description: "Serves the control plane's page on this machine until interrupted, and opens it. It asks over the\n" +
			"operator's own connection, so that the browser needs no certificate. It listens on loopback only, and\n" +
			"lets in the one browser that opens the printed address: the address works once.\n\n" +
			"Example:\n   nixfleet dashboard\n   nixfleet dashboard --listen 127.0.0.1:8090 --no-browser",
		Flags: append(connectionFlags(),
			&cli.StringFlag{Name: "listen", Value: "127.0.0.1:0", Usage: "loopback `ADDRESS`:port; port 0 is any free one"},
			&cli.BoolFlag{Name: "no-browser", Usage: "print the address and open nothing"}),
		Action: func(c *cli.Context) error { return dashboard(c, page) },
	}
}

func dashboard(c *cli.Context, page Page) error {
	if page == nil {
		return errors.New("this build has no page")
	}
	listener, err := loopback(c.Context, c.String("listen"))
	if err != nil {
		return err
	}
	defer listener.Close()
	plane, err := connect(c)
	if err != nil {
		return err
	}
	who, err := plane.Whoami(c.Context)
	if err != nil {
		return explained(err, "ask the control plane")
	}
	address, key := listener.Addr().String(), rand.Text()
	place := "http://" + address + "/enter?key=" + key
	fmt.Fprintf(c.App.Writer, "the page of %s is at\n\n  %s\n\nuntil Ctrl-C; the address works once\n",
		command.Plain(who.CN), place)
	var opening sync.WaitGroup
	defer opening.Wait()
	if !c.Bool("no-browser") {
		opening.Go(func() {
			if err := browse(c.Context, place); err != nil {
				progress(c, "no browser was opened (%v); open the address yourself", err)
			}
		})
	}
	return servePage(c.Context, listener, page(plane, address, key))
}

// loopback listens where only this machine can connect.
func loopback(ctx context.Context, address string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(address)
	if err != nil {
		return nil, command.Usage("nixfleet dashboard --listen 127.0.0.1:8090", "--listen %q: %v", address, err)
	}
	if ip := net.ParseIP(host); ip == nil || !ip.IsLoopback() {
		return nil, command.Usage("nixfleet dashboard --listen 127.0.0.1:8090",
			"--listen %q is not a loopback address: the page would be open to the network", address)
	}
	listener, err := (&net.ListenConfig{}).Listen(ctx, "tcp", address)
	return listener, command.Hinted(err, "nixfleet dashboard --listen 127.0.0.1:0 takes any free port")
}

// servePage serves until ctx ends.
func servePage(ctx context.Context, listener net.Listener, handler http.Handler) error {
	web := &http.Server{
		Handler: handler, BaseContext: func(net.Listener) context.Context { return ctx },
		ReadHeaderTimeout: 10 * time.Second, ReadTimeout: requestTimeout, IdleTimeout: 2 * time.Minute,
		MaxHeaderBytes: 64 << 10, ErrorLog: stdlog.New(io.Discard, "", 0),
	}
	failed := make(chan error, 1)
	go func() { failed <- web.Serve(listener) }()
	select {
	case err := <-failed:
		return fmt.Errorf("serve the page: %w", err)
	case <-ctx.Done():
	}
	stop, done := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Second)
	defer done()
	if err := web.Shutdown(stop); err != nil {
		web.Close()
	}
	<-failed
	return nil
}

// browse opens a place in the user's browser, and tidies up when ctx ends. The key is handed
// over in a file of the user's own: every user can read the arguments of a program.
func browse(ctx context.Context, place string) error {
	program := "xdg-open"
	switch {
	case runtime.GOOS == "darwin":
		program = "open"
	case os.Getenv("DISPLAY") == "" && os.Getenv("WAYLAND_DISPLAY") == "":
		return errors.New("there is no display")
	}
	program, err := exec.LookPath(program)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "nixfleet-dashboard-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "open.html")
	text := fmt.Sprintf("<!doctype html><meta http-equiv=refresh content='0; url=%s'><a href='%[1]s'>nixfleet</a>\n",
		place)
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		return err
	}
	opener := exec.CommandContext(ctx, program, file)
	opener.WaitDelay = time.Second
	if err := opener.Run(); err != nil {
		return err
	}
	<-ctx.Done()
	return nil
}
