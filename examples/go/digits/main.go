// Digits trains logistic regression on scikit-learn's 1797 scanned digits of 8 x 8 pixels, with a gradient written in Go:
//
//	go run ./examples/go/digits [-optimizer AdamW] [-epochs 30]
package main

import (
	"bytes"
	"compress/gzip"
	_ "embed"
	"encoding/csv"
	"flag"
	"fmt"
	"io"
	"log"
	"math"
	"math/rand/v2"
	"strconv"

	"github.com/goptim/goptim/goptim"
	"github.com/goptim/goptim/goptim/schedule"
)

// digits has one row per image, with 64 pixels from 0 to 16 and the digit: the test set of E. Alpaydin & C. Kaynak, "Optical
// Recognition of Handwritten Digits", UCI Machine Learning Repository (1998), CC BY 4.0, as in scikit-learn.
//
//go:embed digits.csv.gz
var digits []byte

const pixels, classes, batch = 64, 10, 64

// An image has pixels from 0 to 1, and its digit.
type image struct {
	x     [pixels]float32
	digit int
}

func main() {
	optimizer := flag.String("optimizer", "AdamW", "AdamW, SGD or Adagrad")
	epochs := flag.Int("epochs", 30, "passes over the training data")
	flag.Parse()
	if _, err := train(*optimizer, *epochs, log.Printf); err != nil {
		log.Fatal(err)
	}
}

// train returns the final accuracy on the test images.
func train(optimizer string, epochs int, report func(format string, a ...any)) (accuracy float64, err error) {
	images, err := read()
	if err != nil {
		return 0, err
	}
	random := rand.New(rand.NewPCG(1, 2))
	random.Shuffle(len(images), func(i, j int) { images[i], images[j] = images[j], images[i] })
	training, test := images[:len(images)*3/4], images[len(images)*3/4:]

	weight := &goptim.Param[float32]{
		Name: "weight", Value: make([]float32, classes*pixels), Grad: make([]float32, classes*pixels), Shape: []int{classes, pixels},
	}
	bias := &goptim.Param[float32]{Name: "bias", Value: make([]float32, classes), Grad: make([]float32, classes)}
	opt, setLR, err := build(optimizer, weight, bias)
	if err != nil {
		return 0, err
	}
	steps := epochs * ((len(training) + batch - 1) / batch)
	rate, err := schedule.WarmupCosine(1, min(10, steps-1), max(steps, 1), 0)
	if err != nil {
		return 0, err
	}
	for epoch, step := 0, 0; epoch < epochs; epoch++ {
		random.Shuffle(len(training), func(i, j int) { training[i], training[j] = training[j], training[i] })
		loss := 0.0
		for at := 0; at < len(training); at += batch {
			loss += gradient(training[at:min(at+batch, len(training))], weight, bias)
			setLR(rate(step))
			if err := opt.Step(); err != nil {
				return 0, err
			}
			step++
		}
		accuracy = recognized(test, weight, bias)
		report("epoch %2d: loss %.4f, %.1f%% of the test images", epoch+1, loss/float64(len(training)), 100*accuracy)
	}
	return accuracy, nil
}

// build returns an optimizer with weight decay for the weight but not for the bias, and a function that scales its learning rate.
func build(optimizer string, weight, bias *goptim.Param[float32]) (goptim.Optimizer, func(share float64), error) {
	type params = []*goptim.Param[float32]
	switch optimizer {
	case "AdamW":
		w, err := goptim.NewAdamW(params{weight}, goptim.AdamOptions{WeightDecay: 0.01})
		if err != nil {
			return nil, nil, err
		}
		b, err := goptim.NewAdamW(params{bias}, goptim.AdamOptions{})
		if err != nil {
			return nil, nil, err
		}
		both, err := goptim.NewGroups(w, b)
		return both, func(share float64) { w.LR, b.LR = 0.02*share, 0.02*share }, err
	case "SGD":
		o, err := goptim.NewSGD(params{weight, bias}, goptim.SGDOptions{Momentum: 0.9, Nesterov: true})
		return o, func(share float64) { o.LR = 0.2 * share }, err
	case "Adagrad":
		o, err := goptim.NewAdagrad(params{weight, bias}, goptim.AdagradOptions{})
		return o, func(share float64) { o.LR = 0.1 * share }, err
	}
	return nil, nil, fmt.Errorf("no optimizer %q", optimizer)
}

// gradient stores the gradients of the mean cross entropy in the parameters, and returns the sum of the losses.
func gradient(images []image, weight, bias *goptim.Param[float32]) (loss float64) {
	clear(weight.Grad)
	clear(bias.Grad)
	for i := range images {
		p := probabilities(&images[i], weight, bias)
		loss -= math.Log(max(p[images[i].digit], 1e-30))
		p[images[i].digit]--
		for k, d := range p {
			d := float32(d) / float32(len(images))
			bias.Grad[k] += d
			for j, x := range images[i].x {
				weight.Grad[k*pixels+j] += d * x
			}
		}
	}
	return loss
}

// probabilities are the softmax of the scores.
func probabilities(im *image, weight, bias *goptim.Param[float32]) (p [classes]float64) {
	most, sum := math.Inf(-1), 0.0
	for k := range p {
		score := bias.Value[k]
		for j, x := range im.x {
			score += weight.Value[k*pixels+j] * x
		}
		p[k] = float64(score)
		most = max(most, p[k])
	}
	for k := range p {
		p[k] = math.Exp(p[k] - most)
		sum += p[k]
	}
	for k := range p {
		p[k] /= sum
	}
	return p
}

func recognized(images []image, weight, bias *goptim.Param[float32]) float64 {
	right := 0
	for i := range images {
		best, p := 0, probabilities(&images[i], weight, bias)
		for k := range p {
			if p[k] > p[best] {
				best = k
			}
		}
		if best == images[i].digit {
			right++
		}
	}
	return float64(right) / float64(len(images))
}

func read() ([]image, error) {
	unzipped, err := gzip.NewReader(bytes.NewReader(digits))
	if err != nil {
		return nil, err
	}
	var images []image
	for r := csv.NewReader(unzipped); ; {
		row, err := r.Read()
		if err == io.EOF {
			return images, nil
		}
		if err != nil {
			return nil, err
		}
		var im image
		for i, text := range row {
			n, err := strconv.Atoi(text)
			if err != nil {
				return nil, err
			}
			if i < pixels {
				im.x[i] = float32(n) / 16
			} else {
				im.digit = n
			}
		}
		images = append(images, im)
	}
}
