package main

import (
	"fmt"
	"io"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
)

// A table is a head and its rows.
type table struct {
	head []string
	rows [][]any
}

func (t *table) add(cells ...any) { t.rows = append(t.rows, cells) }

func (t *table) print(w io.Writer) error {
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(tw, strings.Join(t.head, "\t"))
	for _, row := range t.rows {
		cells := make([]string, len(row))
		for i, c := range row {
			cells[i] = dash(fmt.Sprint(c))
		}
		fmt.Fprintln(tw, strings.Join(cells, "\t"))
	}
	return tw.Flush()
}

// dash stands for an empty cell, so that columns can be cut by scripts.
func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// print shows m as JSON, or as the table that t makes.
func (c *caller) print(cmd *cobra.Command, m proto.Message, t func() *table) error {
	if c.output == "json" {
		return printJSON(cmd.OutOrStdout(), m)
	}
	return t().print(cmd.OutOrStdout())
}

// printJSON prints field names as the proto has them, empty fields included, so
// that a script finds each field always.
func printJSON(w io.Writer, m proto.Message) error {
	b, err := protojson.MarshalOptions{Multiline: true, UseProtoNames: true, EmitUnpopulated: true}.Marshal(m)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(w, string(b))
	return err
}

// say prints one line for the person, nothing for a script.
func (c *caller) say(cmd *cobra.Command, format string, args ...any) {
	if c.output == "table" {
		fmt.Fprintf(cmd.OutOrStdout(), format+"\n", args...)
	}
}
