package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"

	"replug/directory/frame"
	"replug/directory/vnet"
)

// probe sends a segment of a health check to a port's guest.
func (h *Host) probe(to target, s frame.Spec) error {
	f, err := frame.Compose(s)
	if err != nil {
		return err
	}
	return h.sender.Answer(to.id, to.place.Epoch, to.ifindex, f)
}

func (h *Host) serveMetrics(ctx context.Context) error {
	if h.config.MetricsListen == "" {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", h.config.MetricsListen)
	if err != nil {
		return fmt.Errorf("serve metrics (--metrics-listen): %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.registry, promhttp.HandlerOpts{}))
	s := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	stop := context.AfterFunc(ctx, func() { _ = s.Close() })
	defer stop()
	if err := s.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("serve metrics: %w", err)
	}
	return nil
}

// A handler hands what the directory says to ports and networks. What ports
// rely on is written before they hear of it.
type handler struct {
	*networks
	ports *ports
	log   *slog.Logger
}

func (h handler) OnResync() {
	h.networks.OnResync()
	h.ports.resync()
}

func (h handler) OnIntent(in vnet.Intent) {
	h.flush()
	h.ports.set(in)
}

func (h handler) OnIntentGone(port string) { h.ports.gone(port) }

func (h handler) OnSynced(revision int64) {
	h.networks.OnSynced(revision)
	h.ports.synced()
}
