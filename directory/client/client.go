// Package client is a host's end of the directory: it keeps one stream to the
// leading server, hands what the host should know to a handler, in order, and
// brings what the host reports to the leader, again and again until it is taken
// over. It knows no etcd, and keeps no copy of the directory: the handler does.
package client

import (
	"context"
	"crypto/tls"
	"errors"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"replug/directory/vnet"
)

// ErrConfig is returned for a configuration that can't work.
var ErrConfig = errors.New("the directory client needs endpoints, certificates, the host's name and a session above 0")

// A Handler hears what the directory says. Calls are serial, in the order of the
// changes; a handler that takes its time is waited for, and in the end the server
// closes the stream and all is repeated.
type Handler interface {
	// OnResync says that everything follows, up to OnSynced. What is not repeated
	// until then is gone.
	OnResync()
	OnIntent(vnet.Intent)
	OnIntentGone(port string)
	OnMapping(vnet.Mapping)
	OnMappingGone(vnet.VNI, vnet.CA)
	OnGroup(vnet.Group)
	OnGroupGone(v vnet.VNI, name string)
	OnService(vnet.Service)
	OnServiceGone(v vnet.VNI, name string)
	// OnNetworkSynced says that all of a network's mappings, groups and services up
	// to a revision have been heard. It comes before the first intent that needs the network.
	OnNetworkSynced(v vnet.VNI, revision int64)
	// OnNetworkGone says that no intent of this host needs the network any more:
	// what belongs to it can be dropped, it will not be updated.
	OnNetworkGone(vnet.VNI)
	OnHost(vnet.HostInfo)
	OnHostGone(name string)
	// OnSynced says that everything up to a revision has been heard.
	OnSynced(revision int64)
}

// Config says where the directory is and who the host is.
type Config struct {
	Endpoints []string // host:port of each server; the one that leads is found
	TLS       *tls.Config
	Insecure  bool // no TLS: for tests in one process
	Host      vnet.HostInfo
	Session   uint64 // grows with each start of the agent, never 0
	Log       *slog.Logger
	OnAsk     Asked // nil: questions are refused

	MinWait, MaxWait time.Duration // between attempts; 0: 20 ms, 2 s
	Remember         time.Duration // how long a reported status is repeated after a break; 0: 10 min
}

// A Client is one host's end of the stream. It is safe for concurrent use.
type Client struct {
	config  Config
	handler Handler
	log     *slog.Logger
	outbox  *outbox
	asking  sync.WaitGroup // questions that are being answered
	health  *health

	// What the handler has heard; only Run's goroutine touches it.
	cluster  string
	era      uint32
	revision int64 // 0 while it holds nothing, or not everything

	mu       sync.Mutex
	endpoint string
	since    time.Time
	err      error
}

// New makes a client; it does nothing until [Client.Run].
func New(c Config, h Handler) (*Client, error) {
	if len(c.Endpoints) == 0 || (c.TLS == nil && !c.Insecure) || c.Host.Name == "" || c.Session == 0 {
		return nil, ErrConfig
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.MinWait == 0 {
		c.MinWait = 20 * time.Millisecond
	}
	if c.MaxWait == 0 {
		c.MaxWait = 2 * time.Second
	}
	if c.Remember == 0 {
		c.Remember = 10 * time.Minute
	}
	return &Client{config: c, handler: h, log: c.Log, outbox: newOutbox(c.Remember), health: newHealth()}, nil
}

// Report brings a status to the leader. It never blocks: the newest status of
// each (port, epoch, phase) is kept until it was taken over. Host, session and
// sequence are filled in here.
func (c *Client) Report(s vnet.Status) {
	s.Host, s.Session = c.config.Host.Name, c.config.Session
	c.outbox.put(s)
}

// ReportHealth brings to the leader what was found out about backends of this
// host. It never blocks: the newest word on each backend is kept, and repeated to
// every new leader until [Client.ForgetHealth].
func (c *Client) ReportHealth(all ...vnet.Health) { c.health.put(all) }

// ForgetHealth ends the repeating of what was found out about a backend.
func (c *Client) ForgetHealth(v vnet.VNI, service, member string) {
	c.health.forget(backend{v, service, member})
}

// Connected returns which server the stream is with, and since when.
func (c *Client) Connected() (endpoint string, since time.Time, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.endpoint, c.since, c.endpoint != ""
}

// Err returns why the last stream or attempt ended.
func (c *Client) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

func (c *Client) connected(endpoint string, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.endpoint, c.since, c.err = endpoint, time.Now(), err
}

// Run keeps the stream until ctx ends. Breaks are said in the log once each, and
// by [Client.Err].
func (c *Client) Run(ctx context.Context) error {
	defer c.asking.Wait()
	wait := c.config.MinWait
	last := ""
	for i := 0; ctx.Err() == nil; i++ {
		endpoint := c.config.Endpoints[i%len(c.config.Endpoints)]
		began := time.Now()
		attached, err := c.stream(ctx, endpoint)
		if ctx.Err() != nil {
			break
		}
		c.connected("", err)
		if text := err.Error(); text != last {
			c.log.Warn("no stream to the directory: trying again", "endpoint", endpoint, "error", err)
			last = text
		}
		if attached {
			i-- // the same server again: most often it was only restarted
			last = ""
			if time.Since(began) > c.config.MaxWait {
				wait = c.config.MinWait
			}
		}
		if !attached && i%len(c.config.Endpoints) != len(c.config.Endpoints)-1 {
			continue // the others first
		}
		pause(ctx, jitter(wait))
		wait = min(2*wait, c.config.MaxWait)
	}
	c.connected("", nil)
	return nil
}

// jitter keeps a thousand hosts from coming back at once.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d) }

func pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-ctx.Done():
	}
}
