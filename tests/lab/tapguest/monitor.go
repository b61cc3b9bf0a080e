package tapguest

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
)

// linker is what the monitor controls.
type linker interface{ SetLink(up bool) error }

// request and the answers are QMP's: one JSON object a line, qemu's
// docs/interop/qmp-spec.
type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        json.RawMessage `json:"id"`
}

type answer struct {
	Return any             `json:"return,omitempty"`
	Error  *qmpError       `json:"error,omitempty"`
	ID     json.RawMessage `json:"id,omitempty"`
}

type qmpError struct {
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *qmpError) Error() string { return e.Desc }

var version = map[string]any{
	"qemu":    map[string]int{"major": 9, "minor": 2, "micro": 3},
	"package": "replug lab guest",
}

// serveMonitor serves one client at a time, as a QEMU monitor does.
func serveMonitor(l net.Listener, device string, nic linker) error {
	for {
		conn, err := l.Accept()
		if err != nil {
			return fmt.Errorf("tapguest: monitor: %w", err)
		}
		session{device: device, nic: nic, out: json.NewEncoder(conn)}.serve(conn)
		conn.Close()
	}
}

// A session is one client's connection.
type session struct {
	device string
	nic    linker
	out    *json.Encoder
}

func (s session) serve(conn net.Conn) {
	s.out.Encode(map[string]any{"QMP": map[string]any{"version": version, "capabilities": []string{}}})
	negotiated := false
	for lines := bufio.NewScanner(conn); lines.Scan(); {
		if len(lines.Bytes()) == 0 {
			continue
		}
		var r request
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			s.out.Encode(answer{Error: &qmpError{"GenericError", "JSON parse error: " + err.Error()}})
			continue
		}
		reply := answer{ID: r.ID}
		switch {
		case !negotiated && r.Execute != "qmp_capabilities":
			reply.Error = &qmpError{"CommandNotFound", "Expecting capabilities negotiation with 'qmp_capabilities'"}
		case !negotiated:
			negotiated, reply.Return = true, struct{}{}
		default:
			reply.Return, reply.Error = s.execute(&r)
		}
		if s.out.Encode(reply) != nil {
			return
		}
	}
}

func (s session) execute(r *request) (any, *qmpError) {
	switch r.Execute {
	case "set_link":
		return s.setLink(r.Arguments)
	case "query-status":
		return map[string]any{"status": "running", "running": true, "singlestep": false}, nil
	case "query-version":
		return version, nil
	}
	return nil, &qmpError{"CommandNotFound", fmt.Sprintf("The command %s has not been found", r.Execute)}
}

func (s session) setLink(arguments json.RawMessage) (any, *qmpError) {
	var a struct {
		Name *string `json:"name"`
		Up   *bool   `json:"up"`
	}
	if err := json.Unmarshal(arguments, &a); err != nil || a.Name == nil || a.Up == nil {
		return nil, &qmpError{"GenericError", "Parameter 'name' or 'up' is missing"}
	}
	if s.device != "" && *a.Name != s.device {
		return nil, &qmpError{"DeviceNotFound", fmt.Sprintf("Device '%s' not found", *a.Name)}
	}
	if err := s.nic.SetLink(*a.Up); err != nil {
		return nil, &qmpError{"GenericError", err.Error()}
	}
	return struct{}{}, nil
}
