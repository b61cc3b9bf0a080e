package control

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/status"

	pb "replug/control/controlpb"
	"replug/control/network"
	"replug/directory/ask"
	"replug/directory/pki"
	"replug/directory/server"
	"replug/directory/store"
)

func (a diagnosticsAPI) WatchDrops(q *pb.WatchDropsRequest, ss grpc.ServerStreamingServer[pb.DropReport]) error {
	d, err := a.open(ss.Context())
	if err != nil {
		return err
	}
	defer d.leave()
	want := ask.Drops{Follow: q.Follow, Every: time.Second, Some: len(q.Ports) == 0}
	if q.Every != nil {
		want.Every = q.Every.AsDuration()
	}
	var sending sync.Mutex
	send := func(r *pb.DropReport) error {
		sending.Lock()
		defer sending.Unlock()
		return ss.Send(r)
	}
	if q.Follow && len(q.Ports) == 0 {
		return d.followDrops(ss.Context(), q, want, send)
	}
	hosts, err := d.dropHosts(ss.Context(), q)
	if err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ss.Context())
	for _, host := range slices.Sorted(maps.Keys(hosts)) {
		want := want
		want.Ports = hosts[host]
		g.Go(func() error { return d.hostDrops(ctx, host, want, send) })
	}
	return g.Wait()
}

// lookAgain is how often ports and hosts that come and go are looked at, at most.
const lookAgain = 500 * time.Millisecond

// followDrops goes on asking all hosts that the caller may ask, about all ports
// that it has, also those that come later.
func (d *diagnoser) followDrops(ctx context.Context, q *pb.WatchDropsRequest, want ask.Drops, send func(*pb.DropReport) error) error {
	g, ctx := errgroup.WithContext(ctx)
	if _, err := d.dropHosts(ctx, q); err != nil {
		return err
	}
	changed := d.s.feed.listen(store.Ports, store.Hosts)
	defer changed.close()
	g.Go(func() error {
		asked := make(map[string]question)
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-changed.ready:
			}
			changed.take()
			hosts, err := d.dropHosts(ctx, q)
			if err != nil && !errors.Is(err, ErrMissing) { // a host that isn't there yet
				return err
			}
			for host := range asked {
				if _, ok := hosts[host]; !ok {
					asked[host].end()
					delete(asked, host)
				}
			}
			for host, ports := range hosts {
				slices.Sort(ports)
				if was, ok := asked[host]; ok {
					if slices.Equal(was.ports, ports) {
						continue
					}
					was.end()
				}
				want := want
				want.Ports = ports
				asking, end := context.WithCancel(ctx)
				asked[host] = question{ports, end}
				g.Go(func() error {
					if err := d.hostDrops(asking, host, want, send); asking.Err() == nil || ctx.Err() != nil {
						return err
					}
					return nil // another question has taken its place
				})
			}
			if !pause(ctx, lookAgain) {
				return ctx.Err()
			}
		}
	})
	return g.Wait()
}

// A question is what a host is being asked about.
type question struct {
	ports []string
	end   context.CancelFunc
}

// dropHosts returns the hosts to ask, each with the ports to ask about; no ports:
// all there are.
func (d *diagnoser) dropHosts(ctx context.Context, q *pb.WatchDropsRequest) (map[string][]string, error) {
	hosts := make(map[string][]string)
	tenant, err := d.tenant(q.Tenant)
	if err != nil {
		return nil, err
	}
	if q.Host != "" && d.who.Kind != pki.Operator {
		return nil, fmt.Errorf("%w: hosts are for operators; name your ports, or leave them out for all", ErrDenied)
	}
	switch {
	case len(q.Ports) > 0:
		for _, name := range q.Ports {
			p, err := d.findNIC(ctx, q.Tenant, name)
			if err != nil {
				return nil, err
			}
			hosts[p.Host] = append(hosts[p.Host], p.Name)
		}
	case tenant != "":
		rows, _, err := store.List[network.Port](ctx, d.store, store.Ports)
		if err != nil {
			return nil, err
		}
		for _, row := range rows {
			if row.Value.Tenant == tenant {
				hosts[row.Value.Host] = append(hosts[row.Value.Host], row.Value.Name)
			}
		}
	default:
		for _, h := range d.s.up.all() {
			hosts[h.Name] = nil
		}
	}
	return onlyHost(hosts, q.Host)
}

// onlyHost narrows down what is asked to one host, if one is named.
func onlyHost(hosts map[string][]string, host string) (map[string][]string, error) {
	if host == "" {
		return hosts, nil
	}
	ports, ok := hosts[host]
	if !ok {
		return nil, fmt.Errorf("host %q: %w: it is not connected, or has none of these ports", host, ErrMissing)
	}
	return map[string][]string{host: ports}, nil
}

// hostDrops hands on what one host refuses. A host that can't be asked is
// reported, and the others go on; with follow it is asked again until it answers.
func (d *diagnoser) hostDrops(ctx context.Context, host string, want ask.Drops, send func(*pb.DropReport) error) error {
	said, changed := "", 0
	for {
		begun := time.Now()
		err := each(ctx, d, host, ask.KindDrops, want, func(r ask.Refused) error {
			said = ""
			for _, row := range r.Rows {
				d.learn(ctx, row.Port)
			}
			return send(d.dropsTo(host, r))
		})
		if err == nil || ctx.Err() != nil {
			return ctx.Err()
		}
		if !errors.Is(err, server.ErrNoHost) && !errors.Is(err, server.ErrSilent) && !errors.Is(err, server.ErrRefused) && !errors.Is(err, server.ErrBusy) {
			return err
		}
		wait := 2 * time.Second
		if changed++; time.Since(begun) > wait {
			changed = 1
		}
		if want.Follow && want.Some && errors.Is(err, server.ErrRefused) && changed <= 2 {
			wait = retryPause // a port has come or gone
		} else if err.Error() != said {
			said = err.Error()
			if err := send(&pb.DropReport{Host: host, Error: status.Convert(onWire(err)).Message()}); err != nil {
				return err
			}
		}
		if !want.Follow || errors.Is(err, server.ErrRefused) && !want.Some {
			return nil
		}
		if d.s.reign.Load() != d.reign {
			return d.s.standby()
		}
		if !pause(ctx, wait) {
			return ctx.Err()
		}
	}
}
