package etcd

import (
	"context"
	"fmt"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// A slogCore passes etcd's log on, one level lower as far as it only tells what
// it does: its "info" is our "debug".
type slogCore struct {
	log    *slog.Logger
	fields []zapcore.Field
}

func level(l zapcore.Level) slog.Level {
	switch {
	case l <= zapcore.InfoLevel:
		return slog.LevelDebug
	case l == zapcore.WarnLevel:
		return slog.LevelInfo
	default:
		return slog.LevelError
	}
}

// Enabled asks slog.
func (c *slogCore) Enabled(l zapcore.Level) bool {
	return l >= zapcore.ErrorLevel || c.log.Enabled(context.Background(), level(l))
}

// With returns a core that adds fields to each entry.
func (c *slogCore) With(f []zapcore.Field) zapcore.Core {
	return &slogCore{c.log, append(c.fields[:len(c.fields):len(c.fields)], f...)}
}

// Check takes an entry that is enabled.
func (c *slogCore) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

// Write passes an entry on.
func (c *slogCore) Write(e zapcore.Entry, f []zapcore.Field) error {
	c.log.LogAttrs(context.Background(), level(e.Level), e.Message, attrs(c.fields, f)...)
	return nil
}

// Sync has nothing to do.
func (c *slogCore) Sync() error { return nil }

func attrs(lists ...[]zapcore.Field) []slog.Attr {
	enc := zapcore.NewMapObjectEncoder()
	for _, l := range lists {
		for _, f := range l {
			f.AddTo(enc)
		}
	}
	as := make([]slog.Attr, 0, len(enc.Fields))
	for k, v := range enc.Fields {
		as = append(as, slog.Any(k, v))
	}
	return as
}

// giveUp replaces what etcd does in the end, os.Exit or panic: the failure is
// noted, every further call fails at once, and the goroutine stays where it is,
// because going on would touch what can't be trusted any more.
type giveUp struct{ etcd *Etcd }

// OnWrite never returns.
func (g giveUp) OnWrite(e *zapcore.CheckedEntry, f []zapcore.Field) {
	g.etcd.fail(fmt.Errorf("%s %v", e.Message, attrs(f)))
	select {}
}
