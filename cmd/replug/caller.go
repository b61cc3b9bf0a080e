package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/status"

	"replug/directory/pki"
)

// A caller holds what every command of the API shares: where the servers are, as
// whom to call, and how to print.
type caller struct {
	servers   []string
	pkiDir    string
	as        string
	tenant    string
	output    string
	timeout   time.Duration
	requestID string
}

func (c *caller) flags(f *pflag.FlagSet) {
	f.StringSliceVar(&c.servers, "server", list(env("REPLUG_SERVER", "127.0.0.1:7443")), "replug-server address, several are tried in turn (REPLUG_SERVER)")
	f.StringVar(&c.pkiDir, "pki", env("REPLUG_PKI", "/etc/replug/pki"), "directory with ca.crt, NAME.crt and NAME.key (REPLUG_PKI)")
	f.StringVar(&c.as, "as", env("REPLUG_AS", "operator"), "NAME of the certificate to call with (REPLUG_AS)")
	f.StringVar(&c.tenant, "tenant", env("REPLUG_TENANT", ""), "tenant to act for; a tenant's certificate implies it (REPLUG_TENANT)")
	f.StringVarP(&c.output, "output", "o", "table", "table or json")
	f.DurationVar(&c.timeout, "timeout", 2*time.Minute, "give up after this long")
	f.StringVar(&c.requestID, "request-id", "", "same id again: same answer, nothing done twice (default: a new one)")
}

func env(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func list(s string) []string { return strings.FieldsFunc(s, func(r rune) bool { return r == ',' }) }

// id is the request id: the caller's own, or a new one.
func (c *caller) id() string {
	if c.requestID != "" {
		return c.requestID
	}
	return "cli-" + strings.ToLower(rand.Text())
}

// maxAnswer is how many bytes an answer may have: lists have no pages, and gRPC's own
// bound ends them at some thousands of VMs.
const maxAnswer = 64 << 20

// call runs f with a connection to the first server that leads.
func (c *caller) call(cmd *cobra.Command, f func(context.Context, *grpc.ClientConn) error) error {
	return c.callWithin(cmd, c.timeout, f)
}

// callLong is call for what goes on until it is interrupted, unless a timeout was
// given.
func (c *caller) callLong(cmd *cobra.Command, f func(context.Context, *grpc.ClientConn) error) error {
	if cmd.Flags().Changed("timeout") {
		return c.call(cmd, f)
	}
	const forever = 100 * 365 * 24 * time.Hour
	return c.callWithin(cmd, forever, f)
}

func (c *caller) callWithin(cmd *cobra.Command, within time.Duration, f func(context.Context, *grpc.ClientConn) error) error {
	if c.output != "table" && c.output != "json" {
		return usageError{fmt.Errorf("--output is table or json, not %q", c.output)}
	}
	tls, err := pki.DirFiles(c.pkiDir, c.as).ClientTLS(slog.New(slog.DiscardHandler))
	if err != nil {
		return fmt.Errorf("%w\nName your certificates with --pki and --as; 'replug pki' makes them", err)
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), within)
	defer cancel()
	creds := credentials.NewTLS(tls)
	last := errors.New("no server given: use --server")
	for _, server := range c.servers {
		conn, err := grpc.NewClient("passthrough:///"+server, grpc.WithTransportCredentials(creds), grpc.WithDisableServiceConfig(),
			grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxAnswer)))
		if err != nil {
			return err
		}
		last = f(ctx, conn)
		conn.Close()
		if status.Code(last) != codes.Unavailable {
			return last
		}
	}
	return last
}
