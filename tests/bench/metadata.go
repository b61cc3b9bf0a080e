package bench

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"replug/dataplane/imds"
	"replug/directory/vnet"
)

const (
	imdsPorts   = 1000
	imdsClients = 16
	imdsSeconds = 2 * time.Second
	imdsLeast   = 10000 // requests a second
	wakeMost    = 50    // ms until the last of a thousand polls has its answer
)

// metadata measures the metadata service of a host: a thousand ports that ask for
// their instance as cloud-init does, and a thousand that wait for their document.
// Service and callers share the machine's CPUs.
func metadata(ctx context.Context, o Options) ([]Figure, error) {
	s, addr, stop, err := serveMetadata(ctx)
	if err != nil {
		return nil, err
	}
	defer stop()
	doc := &vnet.Document{Instance: "vm-17", Hostname: "web-1", User: "ann", SSHKeys: []string{"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5 ann"}}
	var rates, wakes []float64
	for range o.Rounds {
		for id := range vnet.PortID(imdsPorts) {
			s.Forget(id + 1) // with its bucket of requests
			s.Publish(id+1, vnet.NewEpoch(1, 7), doc, imds.Guest{Personality: vnet.PersonalityCloudInit, UUID: "5f7c1a2e-3b4d-4c6f-8a9b-2c3d4e5f6a7b"})
		}
		n, err := askAll(addr, imdsSeconds)
		if err != nil {
			return nil, err
		}
		rates = append(rates, float64(n)/imdsSeconds.Seconds())
	}
	for i := range o.Rounds {
		took, err := wakeAll(s, addr, vnet.NewEpoch(1, uint64(7+i)), doc)
		if err != nil {
			return nil, err
		}
		wakes = append(wakes, ms(took))
	}
	rate := Figure{ID: "imds_per_s", Unit: "requests/s", Ours: median(rates), Must: fmt.Sprint(">= ", imdsLeast), Runs: rates}
	rate.OK = rate.Ours >= imdsLeast
	return []Figure{rate, atMost("imds_wake_1000_ms", "ms", wakes, median, wakeMost, "", 0)}, nil
}

// serveMetadata runs the service on the loopback device. A caller's port is in the
// two middle bytes of its address; all are of one epoch.
func serveMetadata(ctx context.Context) (*imds.Server, string, func(), error) {
	s := imds.New(imds.Config{
		Identify: func(a netip.AddrPort) (imds.Caller, bool) {
			b := a.Addr().Unmap().As4()
			return imds.Caller{Port: vnet.PortID(b[1])<<8 | vnet.PortID(b[2]), Epoch: uint16(b[3])}, true
		},
		Log: slog.New(slog.DiscardHandler),
	})
	l, err := imds.Listen(ctx, "lo", "127.0.0.1:0")
	if err != nil {
		return nil, "", nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, l) }()
	return s, l.Addr().String(), func() { cancel(); <-done }, nil
}

// A caller is one guest's connection.
type caller struct {
	conn net.Conn
	in   *bufio.Reader
}

func call(addr string, port int, epoch vnet.Epoch) (*caller, error) {
	from := net.IPv4(127, byte(port>>8), byte(port), byte(epoch.Counter()))
	conn, err := (&net.Dialer{LocalAddr: &net.TCPAddr{IP: from}}).Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return &caller{conn, bufio.NewReader(conn)}, nil
}

func (c *caller) send(path string) error {
	_, err := fmt.Fprintf(c.conn, "GET %s HTTP/1.1\r\nHost: 169.254.169.254\r\nMetadata: true\r\n\r\n", path)
	return err
}

func (c *caller) answer() error {
	r, err := http.ReadResponse(c.in, nil)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("answered %s", r.Status)
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

// askAll lets clients ask for a while, each for its share of the ports in turn, and
// returns how many answers there were.
func askAll(addr string, during time.Duration) (int64, error) {
	var n atomic.Int64
	var all sync.WaitGroup
	errs := make([]error, imdsClients)
	end := time.Now().Add(during)
	for i := range imdsClients {
		all.Go(func() {
			var guests []*caller
			defer func() {
				for _, g := range guests {
					g.conn.Close()
				}
			}()
			for port := i + 1; port <= imdsPorts; port += imdsClients {
				g, err := call(addr, port, vnet.NewEpoch(1, 7))
				if err != nil {
					errs[i] = err
					return
				}
				guests = append(guests, g)
			}
			for j := 0; time.Now().Before(end); j++ {
				g := guests[j%len(guests)]
				if err := errors.Join(g.send("/metadata/instance?api-version=2021-08-01&extended=true"), g.answer()); err != nil {
					errs[i] = err
					return
				}
				n.Add(1)
			}
		})
	}
	all.Wait()
	return n.Load(), errors.Join(errs...)
}

// wakeAll lets every port wait for the document after the one it has, publishes
// that, and returns how long it took until the last one had it.
func wakeAll(s *imds.Server, addr string, has vnet.Epoch, doc *vnet.Document) (time.Duration, error) {
	next := has.Next()
	guests := make([]*caller, imdsPorts)
	for i := range guests {
		g, err := call(addr, i+1, next)
		if err == nil {
			err = g.send(imds.PathConfig + "?wait=60&since=" + has.String())
		}
		if err != nil {
			return 0, err
		}
		defer g.conn.Close()
		guests[i] = g
	}
	var all sync.WaitGroup
	errs := make([]error, imdsPorts)
	begin := time.Now()
	for id := range vnet.PortID(imdsPorts) {
		s.Publish(id+1, next, doc, imds.Guest{})
	}
	for i, g := range guests {
		all.Go(func() { errs[i] = g.answer() })
	}
	all.Wait()
	return time.Since(begin), errors.Join(errs...)
}
