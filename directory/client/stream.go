package client

import (
	"context"
	"fmt"
	"net"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"

	"replug/directory/directorypb"
	"replug/directory/vnet"
	"replug/directory/wire"
)

const (
	dialWithin    = 2 * time.Second
	welcomeWithin = 10 * time.Second
)

// dial opens a connection of its own for each attempt: gRPC's reconnecting would
// wait by its own clock.
func (c *Client) dial(endpoint string) (*grpc.ClientConn, error) {
	creds := insecure.NewCredentials()
	if c.config.TLS != nil {
		creds = credentials.NewTLS(c.config.TLS)
	}
	// gRPC pings an idle server every 10 s at best; the kernel sees a dead one in 4.
	dialer := net.Dialer{Timeout: dialWithin, KeepAliveConfig: net.KeepAliveConfig{
		Enable: true, Idle: time.Second, Interval: time.Second, Count: 3}}
	return grpc.NewClient("passthrough:///"+endpoint,
		grpc.WithTransportCredentials(creds),
		grpc.WithContextDialer(func(ctx context.Context, addr string) (net.Conn, error) {
			return dialer.DialContext(ctx, "tcp", addr)
		}),
		grpc.WithNoProxy(),
		grpc.WithConnectParams(grpc.ConnectParams{Backoff: backoff.DefaultConfig, MinConnectTimeout: dialWithin}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: 3 * time.Second}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(64<<20)),
	)
}

// stream attaches to one server and serves until the stream ends. attached says
// whether the server took the host.
func (c *Client) stream(ctx context.Context, endpoint string) (attached bool, err error) {
	conn, err := c.dial(endpoint)
	if err != nil {
		return false, fmt.Errorf("dial %s: %w", endpoint, err)
	}
	defer func() { _ = conn.Close() }()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	late := time.AfterFunc(welcomeWithin, cancel)
	defer late.Stop()
	rpc, err := directorypb.NewDirectoryClient(conn).Attach(ctx)
	if err != nil {
		return false, fmt.Errorf("attach to %s: %w", endpoint, err)
	}
	// A failure to send shows as a better error in Recv.
	_ = rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Hello{Hello: &directorypb.Hello{
		Host: wire.FromHost(&c.config.Host), Session: c.config.Session,
		ClusterId: c.cluster, Era: c.era, Revision: c.revision}}})
	m, err := rpc.Recv()
	if err != nil {
		return false, fmt.Errorf("attach to %s: %w", endpoint, err)
	}
	w := m.GetWelcome()
	if w == nil || !late.Stop() {
		return false, fmt.Errorf("attach to %s: the server did not welcome the host in time", endpoint)
	}
	c.welcome(endpoint, w)
	asks := c.newAsks(ctx)
	sending := make(chan struct{})
	go func() {
		defer close(sending)
		c.send(ctx, rpc, asks.answers)
	}()
	for err == nil {
		if m, err = rpc.Recv(); err == nil && !asks.hear(m) {
			c.hear(m)
		}
	}
	cancel()
	<-sending
	return true, fmt.Errorf("stream from %s: %w", endpoint, err)
}

func (c *Client) welcome(endpoint string, w *directorypb.Welcome) {
	c.log.Info("attached to the directory", "endpoint", endpoint, "revision", w.Revision, "resync", w.Resync)
	c.connected(endpoint, nil)
	if w.Resync {
		c.revision = 0
		c.handler.OnResync()
	}
	c.cluster, c.era = w.ClusterId, w.Era
}

// hear hands one message to the handler. One that can't be read is left out: the
// host stays with what it knew of that row, and the log says so.
func (c *Client) hear(m *directorypb.ToHost) {
	var err error
	switch m := m.Message.(type) {
	case *directorypb.ToHost_Intent:
		err = deliver(m.Intent, wire.ToIntent, c.handler.OnIntent)
	case *directorypb.ToHost_IntentGone:
		c.outbox.forget(m.IntentGone)
		c.handler.OnIntentGone(m.IntentGone)
	case *directorypb.ToHost_Host:
		err = deliver(m.Host, wire.ToHost, c.handler.OnHost)
	case *directorypb.ToHost_HostGone:
		c.handler.OnHostGone(m.HostGone)
	case *directorypb.ToHost_StatusStored:
		c.outbox.acked(m.StatusStored)
	case *directorypb.ToHost_Synced:
		c.revision = m.Synced.GetRevision()
		c.handler.OnSynced(c.revision)
	default:
		err = c.hearNetwork(m)
	}
	if err != nil {
		c.log.Error("the directory sent what this agent can't read: is one of them older?", "error", err)
	}
}

// hearNetwork hands what belongs to a network to the handler.
func (c *Client) hearNetwork(m any) (err error) {
	switch m := m.(type) {
	case *directorypb.ToHost_Mapping:
		err = deliver(m.Mapping, wire.ToMapping, c.handler.OnMapping)
	case *directorypb.ToHost_MappingGone:
		err = deliverGone(m.MappingGone, wire.ToMappingKey, c.handler.OnMappingGone)
	case *directorypb.ToHost_Group:
		err = deliver(m.Group, wire.ToGroup, c.handler.OnGroup)
	case *directorypb.ToHost_GroupGone:
		err = deliverGone(m.GroupGone, wire.ToPolicyKey, c.handler.OnGroupGone)
	case *directorypb.ToHost_Service:
		err = deliver(m.Service, wire.ToService, c.handler.OnService)
	case *directorypb.ToHost_ServiceGone:
		err = deliverGone(m.ServiceGone, wire.ToPolicyKey, c.handler.OnServiceGone)
	case *directorypb.ToHost_NetworkSynced:
		err = deliver(m.NetworkSynced.GetVni(), wire.ToVNI, func(v vnet.VNI) {
			c.handler.OnNetworkSynced(v, m.NetworkSynced.GetRevision())
		})
	case *directorypb.ToHost_NetworkGone:
		err = deliver(m.NetworkGone, wire.ToVNI, c.handler.OnNetworkGone)
	}
	return err
}

func deliver[W, T any](w W, read func(W) (T, error), to func(T)) error {
	v, err := read(w)
	if err == nil {
		to(v)
	}
	return err
}

func deliverGone[W, K any](w W, read func(W) (vnet.VNI, K, error), to func(vnet.VNI, K)) error {
	v, k, err := read(w)
	if err == nil {
		to(v, k)
	}
	return err
}

// send repeats what a new leader may not know, then sends what is reported. An
// answer goes out when no status waits.
func (c *Client) send(ctx context.Context, rpc directorypb.Directory_AttachClient, answers <-chan *directorypb.Answer) {
	seq, said, first := uint64(0), uint64(0), true
	for {
		statuses, more := c.outbox.after(seq)
		for i := range statuses {
			seq = statuses[i].Seq
			if rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Status{Status: wire.FromStatus(&statuses[i])}}) != nil {
				return
			}
		}
		// The digest comes last: it says least, and must not hide what says more.
		if first {
			d := c.outbox.digest()
			if rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Digest{Digest: &directorypb.Digest{Ports: d}}}) != nil {
				return
			}
		}
		first = false
		found, last, worse := c.health.after(said)
		if len(found) > 0 && rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Health{Health: wire.FromHealth(found)}}) != nil {
			return
		}
		said = last
		select {
		case <-more:
		case a := <-answers:
			if rpc.Send(&directorypb.FromHost{Message: &directorypb.FromHost_Answer{Answer: a}}) != nil {
				return
			}
		case <-worse:
		case <-ctx.Done():
			return
		}
	}
}
