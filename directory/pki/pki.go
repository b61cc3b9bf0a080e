// Package pki makes and reads the certificates by which Replug's programs know
// each other: one CA a cluster, and a certificate for each program, host,
// operator and tenant. The identity is a URI in the certificate,
// replug://<cluster>/<kind>/<name>, and nothing a peer says beside it counts.
// It does not decide who may do what: a server does that, with [FromContext].
package pki

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"

	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/peer"
)

// Errors of this package.
var (
	ErrUnauthenticated = errors.New("the peer has shown no certificate")
	ErrIdentity        = errors.New("not an identity (replug://cluster/kind/name; letters, digits, dots and dashes)")
	ErrExists          = errors.New("there is a CA already: keep it, or make the new one in another directory")
	ErrStranger        = errors.New("the peer is of another cluster or kind")
)

// A Kind is what a certificate's owner is, and so what it may ask for.
type Kind string

// The four kinds.
const (
	Server   Kind = "server"
	Host     Kind = "host"
	Operator Kind = "operator"
	Tenant   Kind = "tenant"
)

// ServerName is the DNS name that every server's certificate carries, so that a
// client needs no name of its own for each server.
const ServerName = "replug-server"

// An Identity is whom a certificate speaks for.
type Identity struct {
	Cluster string
	Kind    Kind
	Name    string
}

// String prints the URI that stands in the certificate.
func (i Identity) String() string {
	return (&url.URL{Scheme: "replug", Host: i.Cluster, Path: "/" + string(i.Kind) + "/" + i.Name}).String()
}

var word = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9.-]{0,62}$`)

// check returns [ErrIdentity] for what could not be read back.
func (i Identity) check() error {
	switch i.Kind {
	case Server, Host, Operator, Tenant:
	default:
		return fmt.Errorf("kind %q: %w", i.Kind, ErrIdentity)
	}
	if !word.MatchString(i.Cluster) || !word.MatchString(i.Name) {
		return fmt.Errorf("cluster %q, name %q: %w", i.Cluster, i.Name, ErrIdentity)
	}
	return nil
}

// ofCertificate reads the one identity of a certificate.
func ofCertificate(c *x509.Certificate) (Identity, error) {
	if len(c.URIs) != 1 || c.URIs[0].Scheme != "replug" {
		return Identity{}, fmt.Errorf("certificate of %q: %w", c.Subject.CommonName, ErrIdentity)
	}
	kind, name, _ := strings.Cut(strings.TrimPrefix(c.URIs[0].Path, "/"), "/")
	i := Identity{Cluster: c.URIs[0].Host, Kind: Kind(kind), Name: name}
	return i, i.check()
}

// FromState returns whom the verified peer of a TLS connection speaks for.
// It returns [ErrUnauthenticated] or [ErrIdentity].
func FromState(s tls.ConnectionState) (Identity, error) {
	if len(s.VerifiedChains) == 0 {
		return Identity{}, ErrUnauthenticated
	}
	return ofCertificate(s.PeerCertificates[0])
}

// FromContext returns whom the caller of a gRPC method speaks for.
func FromContext(ctx context.Context) (Identity, error) {
	p, ok := peer.FromContext(ctx)
	if !ok {
		return Identity{}, ErrUnauthenticated
	}
	t, ok := p.AuthInfo.(credentials.TLSInfo)
	if !ok {
		return Identity{}, ErrUnauthenticated
	}
	return FromState(t.State)
}
