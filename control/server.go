package control

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "replug/control/controlpb"
	"replug/directory/pki"
	"replug/directory/store"
)

// apiPrefix is how the API's methods begin; other services of the same gRPC
// server (directory, health, reflection) have rules of their own.
const apiPrefix = "/replug.control.v1."

func (s *Server) registerAPI(r grpc.ServiceRegistrar) {
	pb.RegisterTenantsServer(r, tenantsAPI{s: s})
	pb.RegisterNetworksServer(r, networksAPI{s: s})
	pb.RegisterGroupsServer(r, groupsAPI{s: s})
	pb.RegisterServicesServer(r, servicesAPI{s: s})
	pb.RegisterVMTypesServer(r, typesAPI{s: s})
	pb.RegisterPoolsServer(r, poolsAPI{s: s})
	pb.RegisterVMsServer(r, vmsAPI{s: s})
	pb.RegisterClaimsServer(r, claimsAPI{s: s})
	pb.RegisterSwapsServer(r, swapsAPI{s: s})
	pb.RegisterPortsServer(r, portsAPI{s: s})
	pb.RegisterHostsServer(r, hostsAPI{s: s})
	pb.RegisterAdminServer(r, adminAPI{s: s})
	pb.RegisterDiagnosticsServer(r, diagnosticsAPI{s: s})
}

// A caller is who makes an API call, and what answers it.
type caller struct {
	*reign
	who pki.Identity
}

type callerKey struct{}

// admit returns ctx with the caller in it, or why the call is refused: by whom it
// is made, or because this server is a standby.
func (s *Server) admit(ctx context.Context) (context.Context, error) {
	who, err := s.cfg.Identify(ctx)
	if err != nil {
		return nil, err
	}
	if who.Kind != pki.Operator && who.Kind != pki.Tenant {
		return nil, fmt.Errorf("%w: the API is for operators and tenants, %s is a %s", ErrDenied, who.Name, who.Kind)
	}
	r := s.reign.Load()
	if r == nil {
		return nil, s.standby()
	}
	return context.WithValue(ctx, callerKey{}, &caller{r, who}), nil
}

func callerOf(ctx context.Context) *caller { return ctx.Value(callerKey{}).(*caller) }

func (s *Server) unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, next grpc.UnaryHandler) (any, error) {
	if !strings.HasPrefix(info.FullMethod, apiPrefix) {
		return next(ctx, req)
	}
	ctx, err := s.admit(ctx)
	var resp any
	if err == nil {
		resp, err = next(ctx, req)
	}
	return resp, s.answered(info.FullMethod, err)
}

func (s *Server) stream(srv any, ss grpc.ServerStream, info *grpc.StreamServerInfo, next grpc.StreamHandler) error {
	if !strings.HasPrefix(info.FullMethod, apiPrefix) {
		return next(srv, ss)
	}
	ctx, err := s.admit(ss.Context())
	if err == nil {
		err = next(srv, admitted{ss, ctx})
	}
	return s.answered(info.FullMethod, err)
}

type admitted struct {
	grpc.ServerStream
	ctx context.Context
}

// Context returns the context with the caller in it.
func (a admitted) Context() context.Context { return a.ctx }

func (s *Server) answered(method string, err error) error {
	err = onWire(err)
	short := strings.TrimPrefix(method, apiPrefix)
	s.metrics.calls.WithLabelValues(short, status.Code(err).String()).Inc()
	if err != nil {
		s.cfg.Log.Debug("call refused", "method", short, "error", err)
	}
	return err
}

// operator returns [ErrDenied] for a tenant.
func (c *caller) operator() error {
	if c.who.Kind != pki.Operator {
		return fmt.Errorf("%w: this is for operators, %s is a tenant", ErrDenied, c.who.Name)
	}
	return nil
}

// tenant returns whose objects a call is about: an operator may say any tenant, or
// "" where that means all; a tenant only itself, and needs to say nothing.
func (c *caller) tenant(said string) (string, error) {
	if c.who.Kind == pki.Operator || said == c.who.Name {
		return said, nil
	}
	if said != "" {
		return "", fmt.Errorf("%w: tenant %s can't act for tenant %q; leave the tenant out", ErrDenied, c.who.Name, said)
	}
	return c.who.Name, nil
}

// owner is tenant for calls that make something: it must be somebody's.
func (c *caller) owner(said string) (string, error) {
	t, err := c.tenant(said)
	if err == nil && t == "" {
		return "", fmt.Errorf("%w: no tenant; say whose it is to be", ErrInvalid)
	}
	return t, err
}

// sees reports whether the caller may know of what is a tenant's.
func (c *caller) sees(tenant string) bool { return c.who.Kind == pki.Operator || c.who.Name == tenant }

func (c *caller) scope() string { return string(c.who.Kind) + ":" + c.who.Name }

// A change is a request that changes something.
type change interface {
	proto.Message
	GetRequestId() string
}

// once makes a change once for its request id; it returns what it has led to.
func (c *caller) once(ctx context.Context, req change, compose func(*store.Txn) (string, error)) (string, error) {
	digest, err := digestOf(req)
	if err != nil {
		return "", err
	}
	kind := string(req.ProtoReflect().Descriptor().Name())
	return c.do(ctx, call{caller: c.scope(), id: req.GetRequestId(), kind: strings.TrimSuffix(kind, "Request"), digest: digest}, compose)
}

// digestOf tells two requests with the same id apart.
func digestOf(req proto.Message) (string, error) {
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(req)
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:]), err
}
