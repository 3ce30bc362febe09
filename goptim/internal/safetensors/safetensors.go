// Package safetensors reads and writes the safetensors format, https://huggingface.co/docs/safetensors: the length of a
// header in 8 bytes, the header in JSON, and the bytes of the tensors, little-endian and without gaps.
package safetensors

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"unicode/utf8"
)

// A Tensor is an array in row-major order. Without dimensions it is a scalar.
type Tensor struct {
	Name  string
	DType string // for example F32
	Shape []int
	Data  []byte // little-endian
}

// A File is the content of a safetensors file.
type File struct {
	Metadata map[string]string
	Tensors  []Tensor
}

// maxHeader is the maximal size of a header in bytes, as in the format's reference implementation.
const maxHeader = 100_000_000

// metadata is the key in the header that is not a tensor.
const metadata = "__metadata__"

// bits are the sizes of elements.
var bits = map[string]int{
	"BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
	"U32": 32, "I32": 32, "F32": 32, "U64": 64, "I64": 64, "F64": 64, "C64": 64,
}

// An entry is the header's entry of a tensor.
type entry struct {
	DType   string `json:"dtype"`
	Shape   []int  `json:"shape"`
	Offsets []int  `json:"data_offsets"`
}

// WriteTo writes the file. Wider elements come first, so that all are aligned.
func (f *File) WriteTo(w io.Writer) (int64, error) {
	tensors := slices.Clone(f.Tensors)
	slices.SortStableFunc(tensors, func(a, b Tensor) int {
		return cmp.Or(cmp.Compare(bits[b.DType], bits[a.DType]), cmp.Compare(a.Name, b.Name))
	})
	header := []byte{'{'}
	add := func(key string, value any) error {
		if !utf8.ValidString(key) {
			return fmt.Errorf("name %q is not UTF-8", key)
		}
		k, err := json.Marshal(key)
		if err != nil {
			return err
		}
		v, err := json.Marshal(value)
		if len(header) > 1 {
			header = append(header, ',')
		}
		header = append(append(append(header, k...), ':'), v...)
		return err
	}
	if len(f.Metadata) > 0 {
		if err := add(metadata, f.Metadata); err != nil {
			return 0, err
		}
	}
	end, seen := 0, map[string]bool{metadata: true}
	for _, t := range tensors {
		if err := t.Check(); err != nil {
			return 0, err
		}
		if seen[t.Name] {
			return 0, fmt.Errorf("two tensors %q", t.Name)
		}
		seen[t.Name] = true
		if err := add(t.Name, entry{t.DType, append([]int{}, t.Shape...), []int{end, end + len(t.Data)}}); err != nil {
			return 0, err
		}
		end += len(t.Data)
	}
	header = append(header, '}')
	for len(header)%8 != 0 {
		header = append(header, ' ')
	}
	if len(header) > maxHeader {
		return 0, fmt.Errorf("a header of %d bytes, expected at most %d", len(header), maxHeader)
	}
	total := int64(0)
	write := func(b []byte) error {
		n, err := w.Write(b)
		total += int64(n)
		return err
	}
	err := write(binary.LittleEndian.AppendUint64(nil, uint64(len(header))))
	if err == nil {
		err = write(header)
	}
	for _, t := range tensors {
		if err == nil {
			err = write(t.Data)
		}
	}
	return total, err
}

// Check reports whether the data is of the type and shape.
func (t Tensor) Check() error {
	size, err := sizeOf(t.DType, t.Shape)
	if err != nil {
		return fmt.Errorf("tensor %q: %w", t.Name, err)
	}
	if size != len(t.Data) {
		return fmt.Errorf("tensor %q: %d bytes, expected %d of %s of shape %v", t.Name, len(t.Data), size, t.DType, t.Shape)
	}
	return nil
}

// sizeOf returns the size of a tensor in bytes.
func sizeOf(dtype string, shape []int) (int, error) {
	width, ok := bits[dtype]
	if !ok {
		return 0, fmt.Errorf("dtype %q is not known", dtype)
	}
	size := width / 8
	for _, n := range shape {
		if n < 0 || (n > 0 && size > math.MaxInt/n) {
			return 0, fmt.Errorf("shape %v", shape)
		}
		size *= n
	}
	return size, nil
}

// Parse reads a file. The tensors' data are slices of it.
func Parse(file []byte) (*File, error) {
	if len(file) < 8 {
		return nil, fmt.Errorf("%d bytes: %w", len(file), io.ErrUnexpectedEOF)
	}
	n := binary.LittleEndian.Uint64(file)
	if n > maxHeader {
		return nil, fmt.Errorf("a header of %d bytes, expected at most %d", n, maxHeader)
	}
	if n > uint64(len(file)-8) {
		return nil, fmt.Errorf("%d bytes, expected a header of %d: %w", len(file), n, io.ErrUnexpectedEOF)
	}
	f, header, data := new(File), file[8:8+n], file[8+n:]
	var offsets [][2]int
	err := Members(header, func(key string, value json.RawMessage) error {
		if key == metadata {
			f.Metadata = map[string]string{}
			return Members(value, func(key string, value json.RawMessage) error {
				var s string
				err := Decode(value, &s)
				f.Metadata[key] = s
				return err
			})
		}
		var e entry
		if err := e.decode(value); err != nil {
			return err
		}
		size, err := sizeOf(e.DType, e.Shape)
		if err != nil {
			return err
		}
		if len(e.Offsets) != 2 || e.Offsets[0] < 0 || e.Offsets[1] < e.Offsets[0] || e.Offsets[1]-e.Offsets[0] != size || e.Offsets[1] > len(data) {
			return fmt.Errorf("offsets %v, expected %d of %d bytes", e.Offsets, size, len(data))
		}
		f.Tensors = append(f.Tensors, Tensor{key, e.DType, e.Shape, data[e.Offsets[0]:e.Offsets[1]:e.Offsets[1]]})
		offsets = append(offsets, [2]int(e.Offsets))
		return nil
	})
	if err != nil {
		return nil, err
	}
	slices.SortFunc(offsets, func(a, b [2]int) int { return cmp.Or(cmp.Compare(a[0], b[0]), cmp.Compare(a[1], b[1])) })
	end := 0
	for _, o := range offsets {
		if o[0] != end {
			return nil, fmt.Errorf("a tensor begins at %d of the data, expected %d", o[0], end)
		}
		end = o[1]
	}
	if end != len(data) {
		return nil, fmt.Errorf("%d bytes of data, expected %d", len(data), end)
	}
	return f, nil
}

// decode accepts an object with exactly the fields of an entry. encoding/json would also accept other letter cases and null.
func (e *entry) decode(object json.RawMessage) error {
	fields := map[string]any{"dtype": &e.DType, "shape": &e.Shape, "data_offsets": &e.Offsets}
	err := Members(object, func(key string, value json.RawMessage) error {
		field, ok := fields[key]
		if !ok {
			return errors.New("unknown field")
		}
		delete(fields, key)
		return Decode(value, field)
	})
	for key := range fields {
		if err == nil {
			err = fmt.Errorf("no %s", key)
		}
	}
	return err
}

// Decode decodes a JSON value, and rejects null and lists with null, which encoding/json would ignore.
func Decode(value json.RawMessage, to any) error {
	if isNull(value) {
		return errors.New("null")
	}
	var items []json.RawMessage
	if json.Unmarshal(value, &items) == nil && slices.ContainsFunc(items, isNull) {
		return errors.New("null in a list")
	}
	return json.Unmarshal(value, to)
}

func isNull(value json.RawMessage) bool { return string(bytes.TrimSpace(value)) == "null" }

// Members calls do for each member of a JSON object, whose keys must be distinct.
func Members(object []byte, do func(key string, value json.RawMessage) error) error {
	if !bytes.HasPrefix(object, []byte("{")) || !utf8.Valid(object) {
		return errors.New("not an object in JSON")
	}
	d := json.NewDecoder(bytes.NewReader(object))
	if _, err := d.Token(); err != nil {
		return err
	}
	seen := map[string]bool{}
	for d.More() {
		token, err := d.Token()
		if err != nil {
			return err
		}
		key, _ := token.(string)
		if seen[key] {
			return fmt.Errorf("two members %q", key)
		}
		seen[key] = true
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return err
		}
		if err := do(key, value); err != nil {
			return fmt.Errorf("%q: %w", key, err)
		}
	}
	if _, err := d.Token(); err != nil {
		return err
	}
	if rest := strings.TrimRight(string(object[d.InputOffset():]), " "); rest != "" {
		return fmt.Errorf("%q after the object", rest[:min(len(rest), 9)])
	}
	return nil
}
