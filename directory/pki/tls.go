package pki

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// Files are the three files a program needs to speak to its peers.
type Files struct {
	CA   string `json:"ca"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// DirFiles are the files that [Init] and [Issue] have made for name in dir.
func DirFiles(dir, name string) Files {
	return Files{
		CA:   filepath.Join(dir, caFile),
		Cert: filepath.Join(dir, name+".crt"),
		Key:  filepath.Join(dir, name+".key"),
	}
}

// Identity returns whom the files speak for.
func (f Files) Identity() (Identity, error) {
	c, err := certificate(f.Cert)
	if err != nil {
		return Identity{}, err
	}
	return ofCertificate(c)
}

// ServerTLS returns the configuration of a server: TLS 1.3, and a client must
// show a certificate of the same CA and cluster. Files that change are taken
// over by the next handshake; when they can't be read, log says so and the
// former ones stay.
func (f Files) ServerTLS(log *slog.Logger) (*tls.Config, error) {
	l, err := f.load(log)
	if err != nil {
		return nil, err
	}
	if l.own.Kind != Server {
		return nil, fmt.Errorf("%s is of %s: a server needs a certificate of kind %s", f.Cert, l.own, Server)
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"h2"},
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			pair, pool := l.current()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				NextProtos:   []string{"h2", "http/1.1"},
				Certificates: []tls.Certificate{pair},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    pool,
				// A resumed session would not look at the certificates again.
				SessionTicketsDisabled: true,
				VerifyConnection:       l.sameCluster,
			}, nil
		},
	}, nil
}

// ClientTLS returns the configuration of a server's client. The server must show
// a certificate of kind server, of the same CA and cluster, for [ServerName].
func (f Files) ClientTLS(log *slog.Logger) (*tls.Config, error) {
	l, err := f.load(log)
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: ServerName,
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, _ := l.current()
			return &pair, nil
		},
		// The standard check holds one fixed CA pool; verifyServer does the same
		// with the pool of the day.
		InsecureSkipVerify: true,
		VerifyConnection:   l.verifyServer,
	}, nil
}

// A loaded holds what the files said when they were last readable.
type loaded struct {
	files Files
	log   *slog.Logger
	own   Identity

	mu    sync.Mutex
	stamp [3]time.Time // of CA, Cert, Key when they were read
	pair  tls.Certificate
	pool  *x509.CertPool
}

func (f Files) load(log *slog.Logger) (*loaded, error) {
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	l := &loaded{files: f, log: log}
	stamp, err := l.stamps()
	if err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	if err := l.read(stamp); err != nil {
		return nil, fmt.Errorf("load certificates: %w", err)
	}
	return l, nil
}

func (l *loaded) stamps() (s [3]time.Time, err error) {
	for i, path := range []string{l.files.CA, l.files.Cert, l.files.Key} {
		fi, err := os.Stat(path)
		if err != nil {
			return s, err
		}
		s[i] = fi.ModTime()
	}
	return s, nil
}

func (l *loaded) read(stamp [3]time.Time) error {
	pem, err := os.ReadFile(l.files.CA)
	if err != nil {
		return err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return fmt.Errorf("%s holds no certificate in PEM form", l.files.CA)
	}
	pair, err := tls.LoadX509KeyPair(l.files.Cert, l.files.Key)
	if err != nil {
		return fmt.Errorf("%s, %s: %w", l.files.Cert, l.files.Key, err)
	}
	own, err := ofCertificate(pair.Leaf)
	if err != nil {
		return fmt.Errorf("%s: %w", l.files.Cert, err)
	}
	if l.own != (Identity{}) && own != l.own {
		return fmt.Errorf("%s is now of %s, was of %s: restart to become another", l.files.Cert, own, l.own)
	}
	l.stamp, l.pair, l.pool, l.own = stamp, pair, pool, own
	return nil
}

// current takes changed files over and returns what is in force.
func (l *loaded) current() (tls.Certificate, *x509.CertPool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	stamp, err := l.stamps()
	if err == nil && stamp != l.stamp {
		if err = l.read(stamp); err == nil {
			l.log.Info("certificates taken over", "identity", l.own, "expires", l.pair.Leaf.NotAfter)
		}
	}
	if err != nil {
		l.log.Warn("certificates have changed but can't be used: the former ones stay", "error", err)
	}
	return l.pair, l.pool
}

func (l *loaded) sameCluster(s tls.ConnectionState) error {
	id, err := FromState(s)
	if err != nil {
		return err
	}
	if id.Cluster != l.own.Cluster {
		return fmt.Errorf("%s talks to cluster %s: %w", id, l.own.Cluster, ErrStranger)
	}
	return nil
}

func (l *loaded) verifyServer(s tls.ConnectionState) error {
	if len(s.PeerCertificates) == 0 {
		return ErrUnauthenticated
	}
	_, pool := l.current()
	between := x509.NewCertPool()
	for _, c := range s.PeerCertificates[1:] {
		between.AddCert(c)
	}
	chains, err := s.PeerCertificates[0].Verify(x509.VerifyOptions{
		Roots: pool, Intermediates: between, DNSName: ServerName,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	})
	if err != nil {
		return fmt.Errorf("the server's certificate: %w", err)
	}
	s.VerifiedChains = chains
	if id, err := FromState(s); err != nil || id.Kind != Server {
		return fmt.Errorf("the server says it is %s: %w", id, ErrStranger)
	}
	return l.sameCluster(s)
}
