package operator

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"nixfleet/pki"
)

// startControlPlane serves the files below cp/ of a script's directory over
// mTLS: cp/GET/v1/hosts answers GET /v1/hosts, unless there is a file for its
// very query. A file that begins with "!503 "
// is that refusal. What is posted is appended to cp/posted. The operator's
// certificate and configuration lie in op/.
func startControlPlane(env *testscript.Env) error {
	now := time.Now()
	root, _, err := pki.NewFleetRoot("fleet root", now, time.Hour)
	if err != nil {
		return err
	}
	dir := filepath.Join(env.WorkDir, "op")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	issue := func(name string, issue func(key *pki.PrivateKey) ([]byte, error)) error {
		key, err := pki.GenerateKey(pki.AlgorithmP256)
		if err != nil {
			return err
		}
		cert, err := issue(key)
		if err != nil {
			return err
		}
		text, err := key.MarshalPEM()
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(dir, name+".key"), text, 0o600); err != nil {
			return err
		}
		return os.WriteFile(filepath.Join(dir, name+".pem"), cert, 0o600)
	}
	if err := issue("server", func(k *pki.PrivateKey) ([]byte, error) {
		return root.IssueServer([]string{"127.0.0.1"}, k.Crypto().Public(), now, time.Hour)
	}); err != nil {
		return err
	}
	if err := issue("operator", func(k *pki.PrivateKey) ([]byte, error) {
		return root.IssueOperator("operator-jo", k.Crypto().Public(), now, time.Hour)
	}); err != nil {
		return err
	}
	if err := issue("expired", func(k *pki.PrivateKey) ([]byte, error) {
		return root.IssueOperator("operator-jo", k.Crypto().Public(), now.Add(-2*time.Hour), time.Hour)
	}); err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "ca.pem"), certificatePEM(root.Cert.Raw), 0o600); err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, "server.pem"), filepath.Join(dir, "server.key"))
	if err != nil {
		return err
	}
	clients := x509.NewCertPool()
	clients.AddCert(root.Cert)
	server := httptest.NewUnstartedServer(recorded(filepath.Join(env.WorkDir, "cp")))
	server.TLS = &tls.Config{Certificates: []tls.Certificate{pair}, ClientCAs: clients,
		ClientAuth: tls.RequireAndVerifyClientCert}
	server.Config.ErrorLog = nil
	server.StartTLS()
	env.Defer(server.Close)
	config := fmt.Sprintf("cp_url = %q\nca_cert = %q\nclient_cert = %q\nclient_key = %q\n", server.URL,
		filepath.Join(dir, "ca.pem"), filepath.Join(dir, "operator.pem"), filepath.Join(dir, "operator.key"))
	env.Setenv("NIXFLEET_CONFIG", filepath.Join(dir, "config.toml"))
	return os.WriteFile(filepath.Join(dir, "config.toml"), []byte(config), 0o600)
}

func recorded(dir string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			body, err := io.ReadAll(r.Body)
			if err != nil {
				http.Error(w, err.Error(), http.StatusBadRequest)
				return
			}
			log, err := os.OpenFile(filepath.Join(dir, "posted"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err == nil {
				fmt.Fprintf(log, "%s %s %s\n", r.TLS.PeerCertificates[0].Subject.CommonName, r.URL.Path, body)
				err = log.Close()
			}
			if err != nil {
				http.Error(w, err.Error(), http.StatusInternalServerError)
				return
			}
		}
		file := filepath.Join(dir, r.Method, filepath.Clean("/"+r.URL.Path))
		if info, err := os.Stat(file); err == nil && info.IsDir() {
			file = filepath.Join(file, "index")
		}
		if _, err := os.Stat(file + "?" + r.URL.RawQuery); err == nil {
			file += "?" + r.URL.RawQuery
		}
		answer, err := os.ReadFile(file)
		if err != nil {
			http.NotFound(w, r)
			return
		}
		if code, text, ok := strings.Cut(strings.TrimPrefix(string(answer), "!"), " "); ok && answer[0] == '!' {
			var status int
			fmt.Sscan(code, &status)
			http.Error(w, text, status)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if strings.HasPrefix(string(answer), "data:") {
			w.Header().Set("Content-Type", "text/event-stream")
		}
		w.Write(answer)
	})
}
